"""States compared."""

from collections.abc import Mapping

import torch
from torch import Tensor


def assert_states_equal(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same tensors by name, in the same order."""
    assert list(got) == list(expected)
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []
