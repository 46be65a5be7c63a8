"""The inference service: weights over HTTP. It runs from a checkout; importing it loads no torch."""
