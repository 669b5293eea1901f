"""The levels and the tokens with which the kernels are tested, and the bound of the roundings of a sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from convnn import native

USABLE = [name for name, reason in native.levels().items() if reason is None]
LEVELS: list[Any] = [
    name if name in (USABLE[0], USABLE[-1]) else pytest.param(name, marks=pytest.mark.slow) for name in USABLE
]
"""The levels that this machine has, as parameters: those between the first and the fastest are slow tests."""


def whole_numbers(*shape: int) -> Tensor:
    """Products of these are exact, and many are equal."""
    return torch.randint(-2, 3, shape).float()


def scatter(x: Tensor, *values: float) -> Tensor:
    """Put some values among the others."""
    for value in values:
        x[torch.rand(x.shape) < 0.3 / x[0].numel() ** 0.9] = value
    return x


def not_finite(*shape: int) -> Tensor:
    return scatter(whole_numbers(*shape), float("nan"), torch.inf, -torch.inf, -0.0)


def of_any_size(*shape: int) -> Tensor:
    """Squares of these overflow, or vanish, in float32."""
    return scatter(not_finite(*shape), 3e38, 1e-40)


def layouts(x: Tensor) -> list[Tensor]:
    """The same tokens as rows, as an NCHW map, and as a part of wider rows."""
    return [x, x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([x, x], 2)[..., : x.shape[2]]]


def assert_sums(actual: Tensor, exact: Tensor, size: Tensor, terms: int) -> None:
    """Compare sums of so many terms, whose absolute values add up to ``size``, with the bound of their roundings."""
    rounding = 0 if actual.dtype == torch.float32 else torch.finfo(actual.dtype).eps * exact.abs() + 1e-7
    assert ((actual.double() - exact).abs() <= (terms + 2) * 2**-24 * size + rounding).all()
