"""The learnt methods of making weights. A new method is a folder here and an entry in METHODS.

Each folder declares its method in `method.py`, which needs no torch. The class is imported when a file is loaded.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen.errors import UnknownName
from weightgen.generators.d2nwg.method import D2NWG, D2NWG_LAYERWISE
from weightgen.generators.logah.method import LOGAH
from weightgen.generators.mip.method import MIP
from weightgen.method import Method

if TYPE_CHECKING:
    from weightgen.request import WeightGenerator

METHODS = {method.name: method for method in (D2NWG, D2NWG_LAYERWISE, LOGAH, MIP)}


def method_of_file(path: str | Path) -> Method:
    """The method that wrote a generator file; CorruptFile if it is not one, UnknownName for an unregistered method."""
    from weightgen.generators.file import read_method

    name = read_method(Path(path))
    if name not in METHODS:
        raise UnknownName("generator method", name, METHODS)
    return METHODS[name]


def class_of(method: Method) -> Any:
    """The class of a method; importing it imports torch."""
    module, _, name = method.code.partition(":")
    return getattr(import_module(module), name)


def load_generator(path: str | Path) -> "WeightGenerator":
    """The learnt generator in a file; the manifest names its method, and that method checks the rest."""
    return class_of(method_of_file(path)).load(Path(path))
