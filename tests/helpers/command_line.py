"""How a run of the command line ended, and what a refusal looks like."""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def assert_refused(done: Done, code: int, *words: str) -> None:
    """One sentence on stderr, after progress, and nothing on stdout."""
    assert done.code == code, done.err
    assert done.out == ""
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    for word in words:
        assert word in last
