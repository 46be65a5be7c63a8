"""weightgen: weights for small networks, generated from labelled examples and verified before they are handed over."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightgen.client.client import Client
    from weightgen.init.fill import init_, write_init

__version__ = "0.1.0"
__all__ = ["Client", "__version__", "init_", "write_init"]


def __getattr__(name: str) -> Any:
    # On demand: `import weightgen` must not import torch, nor a client of HTTP.
    if name == "Client":
        from weightgen.client.client import Client

        return Client
    if name in ("init_", "write_init"):
        from weightgen.init import fill as init

        return getattr(init, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
