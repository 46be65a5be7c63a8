"""Programs that train generators and codecs, one file each; `python -m training.mip --help`."""
