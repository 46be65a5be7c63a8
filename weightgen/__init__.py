"""weightgen: weights for small networks, generated from labelled examples and verified before they are handed over."""

from typing import TYPE_CHECKING, Any

from weightgen.version import __version__

if TYPE_CHECKING:
    from weightgen.client.client import Client
    from weightgen.init.fill import init_, write_init

__all__ = ["Client", "__version__", "init_", "write_init"]


def __getattr__(name: str) -> Any:
    # On demand: `import weightgen` must not import torch, nor a client of HTTP.
    if name == "Client":
        from weightgen.client.client import Client

        return Client
    if name in ("init_", "write_init"):
        from weightgen.init import fill

        return getattr(fill, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
