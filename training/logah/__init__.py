"""Training of the generator `logah`; `python -m training.logah --help`."""
