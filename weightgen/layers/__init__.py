"""Building blocks on plain tensors that know nothing of specs."""
