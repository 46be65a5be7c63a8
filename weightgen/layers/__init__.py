"""Building blocks for plain tensors, independent of specs."""
