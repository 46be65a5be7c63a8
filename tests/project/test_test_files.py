"""Tests lie where their source lies, import no other test file, and reach for no private name."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

TESTS = ROOT / "tests"
FILES = {str(path.relative_to(TESTS)): path for path in sorted(TESTS.rglob("*.py")) if path != Path(__file__)}
NOT_OURS = {"_version": "torch counts the writes into a tensor", "_replace": "copies a NamedTuple, and is documented"}
"""Names of other packages that begin with an underscore, and what for they are used."""
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "object", "patch"}
"""Functions that take the name of an attribute as a string."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_" and name not in NOT_OURS


def read_programs(source: str) -> Iterator[ast.Module]:
    """The syntax tree of a file, and those of the programs that it holds as strings and runs in other processes."""
    tree = ast.parse(source)
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:
                yield ast.parse(node.value)
            except SyntaxError:
                continue  # a sentence


def find_imports(source: str) -> set[str]:
    """The modules below `tests` that a file imports; "." stands for a relative import."""
    found = set()
    for tree in read_programs(source):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = "." if node.level else node.module or ""
                found |= {f"{module}.{alias.name}" for alias in node.names} if module == "tests" else {module}
    return {module for module in found if module == "." or module.split(".")[0] == "tests"}


def find_private(source: str) -> set[str]:
    """The private names that a file imports or reads, but for those of `self` and `cls` in the class that has them."""
    return {name for tree in read_programs(source) for name in _private_of(tree, frozenset())}


def _private_of(node: ast.AST, own: frozenset[str]) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        parts = list(ast.walk(node))
        own = frozenset(part.name for part in parts if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)) | {
            part.attr for part in parts if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
        }
    elif isinstance(node, ast.ImportFrom):
        names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        yield from filter(is_private, names)
    elif isinstance(node, ast.Import):
        yield from filter(is_private, (part for alias in node.names for part in alias.name.split(".")))
    elif isinstance(node, ast.Attribute) and is_private(node.attr):
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls") and node.attr in own):
            yield node.attr
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in BY_NAME:
            given = [part.value for part in node.args if isinstance(part, ast.Constant)]
            yield from (text for text in given if isinstance(text, str) and any(map(is_private, text.split("."))))
    for child in ast.iter_child_nodes(node):
        yield from _private_of(child, own)


def test_no_file_imports_another_test_file():
    found = {file: find_imports(path.read_text()) for file, path in FILES.items()}
    others = {file: {m for m in names if m.split(".")[:2] != ["tests", "helpers"]} for file, names in found.items()}
    assert not {file: names for file, names in others.items() if names}, "what they share belongs to tests/helpers"


def test_no_file_reaches_for_a_private_name():
    found = {file: find_private(path.read_text()) for file, path in FILES.items()}
    assert not {file: names for file, names in found.items() if names}


def test_every_folder_is_one_of_the_source():
    folders = {path.parent.relative_to(TESTS) for path in FILES.values() if path.name.startswith("test_")}
    assert {folder for folder in folders if not (ROOT / folder / "__init__.py").exists()} == {Path("project")}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from tests.weightgen.test_spec import x", {"tests.weightgen.test_spec"}),
        ("from tests import conftest", {"tests.conftest"}),
        ("import tests.project.test_docs", {"tests.project.test_docs"}),
        ("from .test_spec import x", {"."}),
        ("CODE = 'from tests.conftest import x'", {"tests.conftest"}),
        ("from tests.helpers.paths import ROOT\nfrom tests.helpers import standins", {"tests.helpers"}),
        ("import testsuite\nfrom weightgen import spec", set()),
    ],
)
def test_imports_are_found_however_they_are_written(source, found):
    imported = find_imports(source)
    assert {".".join(module.split(".")[:2]) if "helpers" in module else module for module in imported} == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from weightgen.spec import _shape", {"_shape"}),
        ("import weightgen._spec", {"_spec"}),
        ("store._engine.begin()", {"_engine"}),
        ("monkeypatch.setattr(store, '_engine', None)", {"_engine"}),
        ("monkeypatch.setattr('weightgen.spec._shape', None)", {"weightgen.spec._shape"}),
        ("CODE = 'import weightgen\\nweightgen._spec'", {"_spec"}),
        ("class A:\n    def f(self): return self._x", {"_x"}),
        ("class A:\n    def f(self):\n        self._x = 1\n        return self._x + self.__dict__", set()),
        ("for _ in range(3): x.__class__", set()),
    ],
)
def test_private_names_are_found_however_they_are_reached(source, found):
    assert find_private(source) == found
