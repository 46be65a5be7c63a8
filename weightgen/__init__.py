"""weightgen: weights for small networks, generated from labelled examples and verified before they are handed over."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from weightgen.version import __version__

if TYPE_CHECKING:
    from weightgen.client.client import Client
    from weightgen.init.fill import init_, write_init
    from weightgen.pipeline import generate

__all__ = ["Client", "__version__", "generate", "init_", "write_init"]

_HOMES = {
    "Client": "weightgen.client.client",
    "generate": "weightgen.pipeline",
    "init_": "weightgen.init.fill",
    "write_init": "weightgen.init.fill",
}


def __getattr__(name: str) -> Any:
    # Imported on demand: `import weightgen` must load neither torch nor an HTTP client.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
