"""How a folder of weights is loaded by the class that it is for."""

from typing import Any

import transformers


def hub_class(module: Any) -> Any:
    """What loads a folder of this network: its own class, or an Auto class of transformers."""
    return getattr(transformers, module.HUB_LOADER) if hasattr(module, "HUB_LOADER") else type(module)
