"""Importing does nothing, help is quick, and packages import each other one way only."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def modules_of(package: str) -> list[str]:
    found = pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
    return [package] + [m.name for m in found if not m.name.endswith("__main__")]


def test_importing_everything_prints_nothing_and_draws_no_random_number():
    names = [m for package in ("weightgen", "model_zoo") for m in modules_of(package)]
    done = python(
        "import importlib, os, random, torch, numpy as np\n"
        "before = (torch.get_rng_state().tolist(), random.getstate(), torch.get_num_threads(), os.listdir('.'))\n"
        "state = np.random.get_state()[1].tolist()\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "after = (torch.get_rng_state().tolist(), random.getstate(), torch.get_num_threads(), os.listdir('.'))\n"
        "assert before == after\n"
        "assert state == np.random.get_state()[1].tolist()\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["doctor", "--help"]])
def test_help_and_version_do_not_import_torch(arguments):
    done = python(
        "import sys\n"
        f"sys.argv = ['weightgen', *{arguments!r}]\n"
        "from weightgen.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr


def test_packages_import_one_way_only():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
