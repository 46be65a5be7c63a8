"""Training of the generator `d2nwg` and of its layer-wise mode; `python -m training.d2nwg --help`."""
