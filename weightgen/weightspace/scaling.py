"""TokenScaling: scales tokens to zero mean and unit variance, tensor by tensor, and back.

The statistics are one mean and one standard deviation per generated tensor, so they do not depend on the token layout
they were measured in. Fit them on the tokens of training runs only. `Moments` accumulates in float64 and merges
(Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances"), so a data
set may be read in pieces, in any order, by several processes.

Shapes: n tokens, d = token_dim, in a layout of the spec; a leading batch axis b may stand before them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from weightgen.errors import BadData, CorruptFile, SpecMismatch
from weightgen.spec import StateSpec
from weightgen.weightspace.tokens import TokenLayout

FLAT_BELOW = 1e-7
"""A tensor whose spread is less than this times its mean is constant in float32: it is shifted, not divided."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Count of numbers, their mean, and the sum of their squared distances from it, in float64."""

    count: int = 0
    mean: float = 0.0
    sum_of_squares: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """The moments of a tensor of finite numbers; count 0 for an empty tensor."""
        if values.numel() == 0:
            return cls()
        wide = values.detach().double()
        mean = wide.mean()
        return cls(wide.numel(), float(mean), float((wide - mean).square_().sum()))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both samples together."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count = self.count + other.count
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * other.count / count,
            self.sum_of_squares + other.sum_of_squares + shift**2 * self.count * other.count / count,
        )

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return math.sqrt(self.sum_of_squares / self.count) if self.count else 0.0


class MomentsByTensor:
    """Accumulates the moments of every generated tensor of a spec."""

    def __init__(self, spec: StateSpec) -> None:
        self.spec = spec
        self.moments = {t.name: Moments() for t in spec.generated}

    def add(self, name: str, values: Tensor) -> None:
        """Add numbers of one tensor, in any shape; raises BadData if one is not finite."""
        found = Moments.of(values)
        if not (math.isfinite(found.mean) and math.isfinite(found.sum_of_squares)):
            raise BadData(f"{name!r} of {self.spec.arch!r} holds NaN or infinite numbers; statistics need finite ones")
        self.moments[name] = self.moments[name].merge(found)

    def add_tokens(self, tokens: Tensor, layout: TokenLayout) -> None:
        """Add the tokens (n, d) or (b, n, d) of states of the spec."""
        _check_spec(layout, self.spec)
        batch = _batched(tokens, layout)
        for group in layout.groups:
            rows = layout.rows(batch, group)
            for piece in group.pieces:
                self.add(piece.tensor.name, rows.narrow(2, piece.start, piece.width))

    def merge(self, other: "MomentsByTensor") -> None:
        """Add the moments of another accumulator of the same spec."""
        if other.spec != self.spec:
            raise SpecMismatch(f"moments of {other.spec.arch!r} do not merge into moments of {self.spec.arch!r}")
        self.moments = {name: found.merge(other.moments[name]) for name, found in self.moments.items()}

    def fit(self) -> "TokenScaling":
        """The scaling from all added numbers; raises BadData if there were none."""
        if not any(found.count for found in self.moments.values()):
            raise BadData(f"no numbers of {self.spec.arch!r} to fit a scaling on; is the training split empty?")
        return TokenScaling(self.spec, dict(self.moments))


@dataclass(frozen=True, eq=False)
class TokenScaling:
    """Shifts and divides the numbers of each tensor so that, over the training states, they have mean 0 and std 1."""

    spec: StateSpec
    moments: Mapping[str, Moments]

    @cached_property
    def shift_and_divisor(self) -> dict[str, tuple[float, float]]:
        """Tensor name -> (number to subtract, divisor); the divisor is 1 for a tensor without variance."""
        return {
            name: (m.mean, m.std if m.std > FLAT_BELOW * abs(m.mean) and m.std > 1e-30 else 1.0)
            for name, m in self.moments.items()
        }

    def scale(self, tokens: Float[Tensor, "*b n d"], layout: TokenLayout) -> Float[Tensor, "*b n d"]:
        """Tokens in units of standard deviations; padding stays zero."""
        return self._apply(tokens, layout, lambda values, shift, divisor: values.sub_(shift).div_(divisor))

    def unscale(self, tokens: Float[Tensor, "*b n d"], layout: TokenLayout) -> Float[Tensor, "*b n d"]:
        """The inverse of `scale`, up to rounding; padding becomes zero."""
        return self._apply(tokens, layout, lambda values, shift, divisor: values.mul_(divisor).add_(shift))

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back exactly."""
        return {
            name: {"count": m.count, "mean": m.mean, "sum_of_squares": m.sum_of_squares, "std": m.std}
            for name, m in self.moments.items()
        }

    @classmethod
    def from_json(cls, spec: StateSpec, data: Mapping[str, Any]) -> "TokenScaling":
        """The scaling that `to_json` wrote for this spec; raises CorruptFile if it names other tensors."""
        names = [t.name for t in spec.generated]
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise CorruptFile(f"statistics of {spec.arch!r}: expected one entry for each of its {len(names)} tensors")
        moments = {name: _read_moments(name, data[name]) for name in names}
        return cls(spec, moments)

    def _apply(self, tokens: Tensor, layout: TokenLayout, change: Any) -> Tensor:
        _check_spec(layout, self.spec)
        batch = _batched(tokens, layout).clone()
        for group in layout.groups:
            rows = layout.rows(batch, group)
            for piece in group.pieces:
                change(rows.narrow(2, piece.start, piece.width), *self.shift_and_divisor[piece.tensor.name])
            rows[..., group.width :].zero_()
        return batch if tokens.ndim == 3 else batch[0]


def _check_spec(layout: TokenLayout, spec: StateSpec) -> None:
    if layout.spec != spec:
        raise SpecMismatch(f"the layout is for {layout.spec.arch!r}, the statistics are for {spec.arch!r}")


def _batched(tokens: Tensor, layout: TokenLayout) -> Tensor:
    expected = [layout.num_tokens, layout.token_dim]
    if tokens.ndim not in (2, 3) or list(tokens.shape[-2:]) != expected or not tokens.is_floating_point():
        raise SpecMismatch(f"tokens have shape {list(tokens.shape)}, expected floats {expected} or (b, n, d)")
    return tokens.contiguous() if tokens.ndim == 3 else tokens.contiguous()[None]


def _read_moments(name: str, entry: Any) -> Moments:
    try:
        moments = Moments(int(entry["count"]), float(entry["mean"]), float(entry["sum_of_squares"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"statistics of {name!r}: expected count, mean and sum_of_squares") from error
    if moments.count < 0 or moments.sum_of_squares < 0 or not math.isfinite(moments.mean + moments.sum_of_squares):
        raise CorruptFile(f"statistics of {name!r}: expected a count and finite moments")
    return moments
