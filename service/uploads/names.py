"""How an uploaded data set and its files are called. Importing this loads no torch."""

import re

PREFIX = "up-"
ABOUT, TENSORS = "about.json", "data.safetensors"
"""The two files of a data set; `service.uploads.upload_data` says what they hold."""
_NAME = re.compile(f"{PREFIX}([0-9a-f]{{64}})")


def is_upload(name: str) -> bool:
    """Whether this is the name of an uploaded data set; there may be no such data set any more."""
    return _NAME.fullmatch(name) is not None
