"""`make check` checks tensor shapes in every module that annotates them."""

import ast
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def commands() -> str:
    """What `make check` runs."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.replace("\\\n", " ")


def imports_jaxtyping(path: Path) -> bool:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return any(name.split(".")[0] == "jaxtyping" for name in names)


def test_shapes_are_checked_in_every_module_that_annotates_them(commands):
    listed = re.findall(r"--jaxtyping-packages=(\S+),beartype\.beartype ", commands)
    files = [path for package in ("weightgen", "model_zoo") for path in (ROOT / package).rglob("*.py")]
    annotated = [path.relative_to(ROOT) for path in files if imports_jaxtyping(path)]
    assert len(annotated) > 20
    assert [sorted(names.split(",")) for names in listed] == [
        sorted(str(path.with_suffix("")).replace("/", ".").removesuffix(".__init__") for path in annotated)
    ]


def test_each_of_those_modules_has_a_test_file(commands):
    (command,) = (line for line in commands.splitlines() if "--jaxtyping-packages" in line)
    tests = [word for word in shlex.split(command) if word.startswith("tests/")]
    assert len(tests) > 20 and [test for test in tests if not (ROOT / test).is_file()] == []
