"""The process that reads uploads takes from itself what it does not need."""

import json
import subprocess
import sys
from dataclasses import asdict

from service.uploads.reading.__main__ import BASE_BYTES, OF_UNCOMPRESSED
from tests.helpers.paths import ROOT
from tests.helpers.upload_samples import LIMITS

ASK = """
import json, resource, sys
from pathlib import Path
from service.uploads.reading import Limits
from service.uploads.reading.__main__ import confine
confine(Limits(**json.loads(sys.argv[1])))
limits = {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in ("AS", "CPU", "FSIZE", "CORE")}
print(json.dumps({**limits, "oom": int(Path("/proc/self/oom_score_adj").read_text()), "torch": "torch" in sys.modules}))
"""


def test_its_limits_are_set_for_good_and_it_is_the_first_to_go():
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(asdict(LIMITS))],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    found = json.loads(done.stdout)
    memory = BASE_BYTES + OF_UNCOMPRESSED * LIMITS.max_uncompressed_bytes
    assert found["AS"] == [memory, memory] and found["CPU"] == [LIMITS.max_reading_seconds] * 2
    assert found["CORE"] == [0, 0] and found["FSIZE"][0] == found["FSIZE"][1] < memory
    assert found["oom"] == 1000 and not found["torch"]
