"""Programs that train generators: one shared loop, and one folder for each method; `python -m training.mip --help`."""
