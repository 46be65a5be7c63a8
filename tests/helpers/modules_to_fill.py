"""Modules whose weights are generated in tests: a small one, and those that are hard to initialise."""

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Convolution, norm, a tied pair, a raw vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.into = nn.Linear(6, 6, bias=False)
        self.out = nn.Linear(6, 6)
        self.out.weight = self.into.weight
        self.gamma = nn.Parameter(torch.full((6,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.conv(x)).relu()).mean((2, 3))
        return x + self.gamma * self.out(self.into(x).relu())


class Scaled(nn.Linear):
    """A layer with a random raw vector, and one that its reset_parameters forgets unless it is thorough."""

    is_thorough = True

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.alpha, self.beta = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for vector in (getattr(self, "alpha", None), getattr(self, "beta", None) if self.is_thorough else None):
            if vector is not None:
                nn.init.uniform_(vector)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.alpha * super().forward(x * self.beta)


class Unresettable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gamma = nn.Linear(4, 4), nn.Parameter(torch.rand(4))

    def reset_parameters(self) -> None:
        raise ValueError("only my constructor knows how")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gamma * self.linear(x)


class Odd(nn.Module):
    """A served layer beside an empty one, a lazy one and one that someone quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.served = nn.Linear(6, 6)
        self.lazy = nn.LazyLinear(3)
        self.quantised = nn.Linear(6, 6)
        self.quantised.weight = nn.Parameter(torch.ones(1100, 1000, dtype=torch.int8), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lazy(self.quantised(self.served(x)))


class Loop(nn.Module):
    """A module whose child holds the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.child = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6))
        self.child.append(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.child[0](self.first(x))


class Large(nn.Sequential):
    """Ten billion parameters, in 128 layers of 79 million."""

    def __init__(self) -> None:
        super().__init__(*(nn.TransformerEncoderLayer(2560, 40, 10240, batch_first=True) for _ in range(128)))
