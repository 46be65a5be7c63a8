"""Runs the forward pass of a module's meta twin and records every call of a torch function.

Torch hands every call of its functions to the recorder (a TorchFunctionMode), at the level at which people write
them: one linear layer is one call. `weightgen.graph.calls` turns calls into nodes.
"""

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightgen.graph import rules
from weightgen.graph.calls import follow_call
from weightgen.graph.drafts import Call, Draft, DraftBook, Value, tensors_in
from weightgen.graph.guesses import GUESSES, Guesser
from weightgen.runtime.global_rng import borrowed_rng

MAX_CALLS = 1_000_000
"""A pass that makes more calls than this is stopped: it may never end."""

# Errors that a forward pass may raise because its tensors have no numbers.
TRACE_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    ImportError,
    OSError,
)


class Recorder(TorchFunctionMode):
    """Writes the nodes of one pass into `book`.

    `names`: id of a twin's tensor -> its name and the tensor. `twins`: id of one of the module's own tensors -> its
    twin, for code that holds the original in a closure.
    """

    def __init__(self, names: Mapping[int, tuple[str, Tensor]], twins: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.book = DraftBook(names)
        self.guesser = Guesser()
        self._twins = twins
        self._alive: list[Tensor] = []  # an id is unique only while its tensor lives
        self._num_calls = 0

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record the pass; the last draft is the output."""
        for tensor in tensors_in((args, kwargs)):
            self.book.keep(tensor, Value(0))
        numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
        try:
            with borrowed_rng(), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                with self:
                    result = module(*args, **kwargs)
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
        self.book.drafts.append(Draft("output", "output", self.book.nodes_of(self.book.values_in(result))))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        if name == "__get__":
            name = func.__self__.__name__  # pyright: ignore
        if name in rules.QUIET or name == "__set__":
            return func(*args, **(kwargs or {}))
        if name in rules.DROPOUTS:
            return args[0]
        kwargs = kwargs or {}
        self._num_calls += 1
        if self._num_calls > MAX_CALLS:
            raise RuntimeError(f"the forward pass makes more than {MAX_CALLS:,} calls")
        name = name.partition(".")[0]
        if name in rules.FACTORIES or name in rules.FACTORIES_LIKE:
            return self._make(name, func, args, kwargs)
        if any(not t.is_meta for t in tensors_in((args, kwargs))):
            args, kwargs = self._on_meta(args), {k: self._on_meta(v) for k, v in kwargs.items()}
        guess = GUESSES.get(name)
        if guess is not None:
            result = guess(self.guesser, args, kwargs)
            if result is not NotImplemented:
                if isinstance(result, (Tensor, tuple)):
                    follow_call(self.book, Call(name, func, args, kwargs), result)
                return result
        result = self._compute(name, func, args, kwargs)
        follow_call(self.book, Call(name, func, args, kwargs), result)
        return result

    def _make(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if name in ("as_tensor", "asarray") and isinstance(args[0], Tensor):
            return args[0]
        if name in ("tensor", "new_tensor", "as_tensor") and (found := list(tensors_in(args[-1:]))):
            result = torch.empty((len(found),), dtype=found[0].dtype, device="meta")
            follow_call(self.book, Call("stack", func, (found,), {}), result)
            return result
        first = args[:1] if name in rules.FACTORIES_LIKE else ()
        args = (*first, *self._as_numbers(args[len(first) :]))
        if name in ("complex", "polar", "from_numpy", "normal", "sparse_coo_tensor"):
            return self._on_meta(func(*self._on_meta(args), **kwargs))
        return func(*self._on_meta(args), **{k: v for k, v in kwargs.items() if k != "pin_memory"} | {"device": "meta"})

    def _as_numbers(self, values: Any) -> Any:
        """Arguments with guessed numbers instead of scalar tensors (sizes and bounds)."""
        if isinstance(values, Tensor):
            return self.guesser.guess_number((values,), {}) if values.dim() == 0 else values
        return type(values)(map(self._as_numbers, values)) if type(values) in (list, tuple) else values

    def _on_meta(self, values: Any) -> Any:
        if isinstance(values, Tensor):
            if values.is_meta:
                return values
            twin = self._twins.get(id(values))
            if twin is None and values.dim() == 0 and values.device.type == "cpu":
                return values  # a number, which torch mixes with any device
            if twin is None:  # a constant from outside the module
                twin = torch.empty_like(values, device="meta")
                self._alive.append(twin)
            return twin
        if type(values) in (list, tuple):
            return type(values)(map(self._on_meta, values))
        return {k: self._on_meta(v) for k, v in values.items()} if type(values) is dict else values

    def _compute(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """The result on the meta device; skips the work if only the shape matters."""
        if name in _MOVES:
            dtype = next((a.dtype if isinstance(a, Tensor) else a for a in (*args[1:], *kwargs.values())
                          if isinstance(a, (torch.dtype, Tensor))), args[0].dtype)  # fmt: skip
            return args[0] if name != "to" or dtype == args[0].dtype else torch.empty_like(args[0], dtype=dtype)
        if name == "__setitem__":
            return None
        if rules.is_in_place(name) and name not in rules.VIEWS:
            return args[0]
        shortcut = rules.SHORTCUTS.get(name)
        if shortcut is not None:
            result = shortcut(args, kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


_MOVES = frozenset(("to", "cuda", "cpu", "pin_memory"))
