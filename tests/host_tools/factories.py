"""Factories as a user writes them, small; named "tests.host_tools.factories:NAME"."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from edge.errors import UsageError


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(pixels))
        x = torch.relu(x + self.inner(x))
        return self.head(self.drop(x.mean(dim=(2, 3))))


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


class BakedBatch(nn.Module):
    """Right only for the traced batch size: int() freezes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / int(x.shape[0])


class BakedReshape(nn.Module):
    """Gives another shape for other batch sizes than the traced one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(int(x.shape[0]), -1)


class LongBranch(nn.Module):
    """Right at min and opt, wrong at max: a trace follows one branch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] > 20 else x + 1


class TwoOutputs(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"total": left + right, "length": left.norm(dim=1)}


class NotANumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(-x.abs() - 1)


class Lookup(nn.Module):
    """Takes ids up to 6, and names an inner value like its output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embedding": self.table(ids) * 2.0}


class Nested(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x, (x, x)


class Sorted(nn.Module):
    """An operator that neither exporter can write."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x).real


def cnn() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Residual(), torch.randn(2, 3, 8, 8)


def normalized() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Normalized(), torch.randn(1, 6)


def baked_batch() -> tuple[nn.Module, torch.Tensor]:
    return BakedBatch(), torch.randn(2, 3)


def baked_reshape() -> tuple[nn.Module, torch.Tensor]:
    return BakedReshape(), torch.randn(2, 3)


def long_branch() -> tuple[nn.Module, torch.Tensor]:
    return LongBranch(), torch.randn(2, 8)


def two_outputs() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return TwoOutputs(), {"right": torch.randn(2, 3), "left": torch.randn(2, 3)}


def named_outputs() -> tuple[nn.Module, tuple[torch.Tensor, ...], tuple[str, ...]]:
    return TwoOutputs(), (torch.randn(2, 3), torch.randn(2, 3)), ("sum", "norm")


def too_many_names() -> tuple[nn.Module, torch.Tensor, tuple[str, ...]]:
    return Residual(), torch.randn(1, 3, 8, 8), ("a", "b")


def not_a_number() -> tuple[nn.Module, torch.Tensor]:
    return NotANumber(), torch.randn(1, 3)


def lookup() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Lookup(), torch.tensor([[0, 1, 6]])


def nested() -> tuple[nn.Module, torch.Tensor]:
    return Nested(), torch.randn(1, 3)


def unexportable() -> tuple[nn.Module, torch.Tensor]:
    return Sorted(), torch.eye(3)


def brain_float() -> tuple[nn.Module, torch.Tensor]:
    return nn.Identity(), torch.zeros(1, 3, dtype=torch.bfloat16)


def wrong_example() -> tuple[nn.Module, torch.Tensor]:
    return Residual(), torch.randn(1, 4, 8, 8)


def only_a_module() -> nn.Module:
    return Residual()


def no_module() -> tuple[str, torch.Tensor]:
    return "model.pt", torch.randn(1)


def broken() -> None:
    raise ValueError("weights are\nmissing")


def own_error() -> None:
    raise UsageError("train it first")


not_callable = 3


class Classes(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def classes() -> Any:
    """Untrained: three classes of 16 numbers, see test_compress."""
    torch.manual_seed(1)
    return Classes(64), {"x": torch.randn(2, 16)}


def small_classes() -> Any:
    torch.manual_seed(2)
    return Classes(8), {"x": torch.randn(2, 16)}


def batches() -> Any:
    """Samples for tests.calibration.nets.conv_net, as torch tensors."""
    generator = torch.Generator().manual_seed(0)
    for rows in (5, 30, 29):
        yield {"x": torch.randn(rows, 3, 8, 8, generator=generator)}


def failing_batches() -> Any:
    yield {"x": torch.zeros(4, 3, 8, 8)}
    raise RuntimeError("image 7.png is truncated")


def no_batches() -> Any:
    return iter(())
