"""Guesses for the numbers that a forward pass reads from tensors on the meta device, which have none.

Conditions are true, a search finds one row per place, `==` is false, and all elements are equal. So a mixture of
experts, which chooses rows by the data, runs each of its experts once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAX_GUESSES = 100_000


class Guesser:
    """The guesses of one pass; a method returns NotImplemented if torch knows the answer."""

    def __init__(self) -> None:
        self.asked: dict[str, None] = {}
        """The kinds of numbers that were asked for, in order."""
        self._known: dict[int, int] = {}
        self._differing: set[int] = set()
        self._alive: list[Any] = []  # an id is unique only while its tensor lives
        self._num_guesses = 0

    def _count(self, what: str) -> None:
        self.asked[what] = None
        self._num_guesses += 1
        if self._num_guesses > MAX_GUESSES:
            raise RuntimeError(f"the forward pass asks for more than {MAX_GUESSES:,} values of tensors")

    def guess_truth(self, args: Any, kwargs: dict[str, Any]) -> Any:
        self._count("conditions")
        # A loop that runs while a condition holds must end: every 4096th guess is False.
        return id(args[0]) not in self._differing and self._num_guesses % 4096 != 0

    def guess_number(self, args: Any, kwargs: dict[str, Any]) -> Any:
        if args[0].dtype == torch.bool:
            return self.guess_truth(args, kwargs)
        self._count("numbers")
        number = self._known.get(id(args[0]), 1)
        return float(number) if args[0].dtype.is_floating_point else number

    def guess_integer(self, args: Any, kwargs: dict[str, Any]) -> int:
        return int(self.guess_number(args, kwargs))

    def guess_text(self, args: Any, kwargs: dict[str, Any]) -> Any:
        return format(self.guess_number(args, kwargs), *args[1:]) if args[0].dim() == 0 else NotImplemented

    def guess_list(self, args: Any, kwargs: dict[str, Any]) -> Any:
        self._count("numbers")
        rows = self._known.get(id(args[0]))
        if rows is not None and args[0].dim() == 0:
            return rows
        number = 1.0 if args[0].dtype.is_floating_point else 1

        def fill(shape: tuple[int, ...]) -> Any:
            return number if not shape else [fill(shape[1:]) for _ in range(shape[0])]

        return fill(tuple(args[0].shape))

    def guess_absence(self, args: Any, kwargs: dict[str, Any]) -> bool:
        self._count("conditions")
        return False

    def guess_places(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """nonzero, and where with one argument: every row of the mask is found."""
        self._count("positions")
        mask = args[0] if args else kwargs["input"]
        rows = mask.shape[0] if mask.dim() else 1
        if kwargs.get("as_tuple"):
            return tuple(torch.empty(rows, dtype=torch.long, device="meta") for _ in range(mask.dim()))
        return torch.empty(rows, mask.dim(), dtype=torch.long, device="meta")

    def guess_where(self, args: Any, kwargs: dict[str, Any]) -> Any:
        return self.guess_places(args, {"as_tuple": True}) if len(args) + len(kwargs) == 1 else NotImplemented

    def guess_equality(self, args: Any, kwargs: dict[str, Any]) -> Any:
        self._count("conditions")
        return True

    def mark_equality(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """`==` gives a mask that counts as False: for example, an index is not the padding index."""
        if not isinstance(args[0], Tensor):
            return NotImplemented
        other = args[1] if isinstance(args[1], Tensor) else args[0]
        result = torch.empty(torch.broadcast_shapes(args[0].shape, other.shape), dtype=torch.bool, device="meta")
        self._differing.add(id(result))
        self._alive.append(result)
        return result

    def mark_rows(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """Rows of found positions; each remembers its number, so that a loop over experts reaches all of them."""
        if args[0].dtype.is_floating_point or args[0].dim() == 0 or args[0].shape[0] > 4096:
            return NotImplemented
        rows = args[0].unbind(*args[1:], **kwargs)
        self._known.update((id(row), i) for i, row in enumerate(rows))
        self._alive.append(rows)
        return rows

    def index(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """A part selected by masks, whose number of elements is unknown: one row per place."""
        x, place = args
        places = place if isinstance(place, tuple) else (place,)
        if any(isinstance(p, Tensor) and p.dtype == torch.bool for p in places):
            self._count("positions")
            whole: list[Any] = []
            for p in places:
                is_mask = isinstance(p, Tensor) and p.dtype == torch.bool
                rows = torch.empty(x.shape[len(whole)] if x.dim() else 1, dtype=torch.long, device="meta")
                whole.extend([rows] * p.dim() if is_mask else [p])
            return x[tuple(whole)]
        if id(x) in self._known and all(isinstance(p, int) for p in places):
            part = x[place]
            self._known[id(part)] = self._known[id(x)]
            self._alive.append(part)
            return part
        return NotImplemented

    def repeat(self, args: Any, kwargs: dict[str, Any]) -> Any:
        repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
        if not isinstance(repeats, Tensor):
            return NotImplemented
        self._count("numbers")
        return args[0].clone()

    def guess_distinct(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """unique and unique_consecutive: all elements count as equal, so there is one."""
        self._count("numbers")
        x, dim = args[0], kwargs["dim"]
        inverse = torch.empty(x.shape if dim is None else x.shape[dim], dtype=torch.long, device="meta")
        found = [x.flatten()[:1] if dim is None else x.narrow(dim, 0, 1)]
        found += [inverse] * kwargs["return_inverse"]
        found += [torch.empty(1, dtype=torch.long, device="meta")] * kwargs["return_counts"]
        return tuple(found) if len(found) > 1 else found[0]

    def guess_counts(self, args: Any, kwargs: dict[str, Any]) -> Any:
        self._count("numbers")
        size = max(kwargs.get("minlength", 1), kwargs.get("bins", 1))
        return torch.empty(size, dtype=torch.long, device="meta")


GUESSES: dict[str, Callable[[Guesser, Any, dict[str, Any]], Any]] = {
    "__bool__": Guesser.guess_truth,
    "item": Guesser.guess_number,
    "__float__": Guesser.guess_number,
    "__int__": Guesser.guess_integer,
    "__index__": Guesser.guess_integer,
    "__format__": Guesser.guess_text,
    "__contains__": Guesser.guess_absence,
    "tolist": Guesser.guess_list,
    "nonzero": Guesser.guess_places,
    "where": Guesser.guess_where,
    "equal": Guesser.guess_equality,
    "allclose": Guesser.guess_equality,
    "eq": Guesser.mark_equality,
    "__eq__": Guesser.mark_equality,
    "unbind": Guesser.mark_rows,
    "__getitem__": Guesser.index,
    "repeat_interleave": Guesser.repeat,
    "unique": Guesser.guess_distinct,
    "unique_consecutive": Guesser.guess_distinct,
    "bincount": Guesser.guess_counts,
    "histc": Guesser.guess_counts,
}
