"""The tree in docs/concepts.md is the tree of the checkout, as far as its top floors go."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text()
TREE = CONCEPTS.partition("<!-- tree:begin -->")[2].partition("<!-- tree:end -->")[0]


def shown_of(package: str) -> set[str]:
    """Folders (with /) and files that the tree shows below a package."""
    lines = TREE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{package}/"))
    shown: set[str] = set()
    for line in lines[start + 1 :]:
        if not line.startswith("  "):
            break
        first, *rest = line.split()
        shown |= {first, *rest} if first.endswith(".py") else {first}
    return shown


def there_in(package: str) -> set[str]:
    """Folders that hold code, and files, below a package."""
    found = set()
    for path in (ROOT / package).iterdir():
        if path.is_dir() and path.name != "__pycache__":
            found.add(f"{path.name}/")
        elif path.suffix == ".py" and not path.name.startswith("__"):
            found.add(path.name)
    return found


@pytest.mark.parametrize("package", ["weightgen", "model_zoo", "benchmarks"])
def test_the_tree_shows_the_top_floor(package):
    assert shown_of(package) == there_in(package)


@pytest.mark.parametrize("contract", ["weightgen-floors", "service-floors"])
def test_the_floors_are_those_of_the_contract(contract):
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["id"] == contract)
    floors = [re.sub(r"\s+", " ", layer).split(" | ") for layer in layers]
    known = [set(floor) - {"__main__", "settings_table"} for floor in floors]
    written = [
        [set(floor.split(" | ")) for floor in re.sub(r"\s+", " ", block).split(" → ")]
        for block in re.findall(r"^`([^`]* → [^`]*)`$", CONCEPTS, flags=re.MULTILINE | re.DOTALL)
    ]
    assert [floor for floor in known if floor] in written
