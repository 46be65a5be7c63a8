"""Training of the generator `mip`; `python -m training.mip --help`."""
