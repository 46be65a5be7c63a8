"""Every error that a caller can cause, each with the exit code the command line returns for it.

    WeightgenError            1  something the caller gave cannot be used
    ├── BadOption             2  an argument or option is out of its range
    ├── BadData               1  a labelled data set or support set is not usable
    ├── CorruptFile           1  a file is truncated, tampered with, too large or of another format
    ├── SpecMismatch          1  tensors do not match what a spec asks for
    ├── StorageFailed         1  a file could not be written (disk full, no permission)
    ├── ServiceFailed         1  a service over HTTP gives no answer, or a wrong one
    ├── VerificationFailed    3  generated weights did not pass the gate
    ├── UnsupportedTask       4  a generator cannot honour this request
    └── NotFound              5  a file or folder does not exist
        └── UnknownName       5  no registered thing has this name

A message is one sentence: what is wrong, what was expected, what was got, and the way out. A bug of our
own is an assert, not one of these.
"""

import difflib
from collections.abc import Iterable


class WeightgenError(Exception):
    """Something the caller gave cannot be used."""

    exit_code = 1


class BadOption(WeightgenError):
    """An argument or option is out of its range."""

    exit_code = 2


class BadData(WeightgenError):
    """A labelled data set or support set is not usable."""


class CorruptFile(WeightgenError):
    """A file is truncated, tampered with, too large or of another format."""


class SpecMismatch(WeightgenError):
    """Tensors do not match what a spec asks for."""


class StorageFailed(WeightgenError):
    """A file could not be written."""


class ServiceFailed(WeightgenError):
    """A service over HTTP gives no answer, or a wrong one."""


class VerificationFailed(WeightgenError):
    """Generated weights did not pass the gate."""

    exit_code = 3


class UnsupportedTask(WeightgenError):
    """A generator cannot honour this request."""

    exit_code = 4


class NotFound(WeightgenError):
    """A file or folder does not exist."""

    exit_code = 5


class UnknownName(NotFound):
    """No registered thing has this name; the message suggests the nearest one that exists."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        way_out = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(choices)}"
        super().__init__(f"no {kind} is called {name!r}; {way_out}")
        self.kind, self.name, self.nearest = kind, name, near[0] if near else None
