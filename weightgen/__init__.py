"""weightgen: weights for small networks, generated from labelled examples and verified before they are handed over."""

__version__ = "0.1.0"
