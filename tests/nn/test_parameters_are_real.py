"""Parameters are real numbers: what has others, or none, has no ConvNN in its place, and the message says so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from convnn import ConvNN2d, ConvNNError, convert

from ..layers import KINDS


def of_dtype(dtype: torch.dtype) -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 3)
    conv.weight = nn.Parameter(conv.weight.detach().to(dtype), requires_grad=False)
    return conv


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no input channels": (lambda: nn.Conv2d(0, 4, 3), "conv: expected at least one input and one output .*got 0 -> 4"),
    "no output channels": (lambda: nn.Conv2d(4, 0, 3), "conv: expected at least one input and one output .*got 4 -> 0"),
    "complex": (lambda: nn.Conv2d(4, 4, 3, dtype=torch.complex64), "conv: .*float32 or float64, got torch.complex64"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "conv: expected a layer with its weights, got LazyConv2d"),
    "transposed": (lambda: nn.ConvTranspose2d(4, 4, 3), "conv: expected an nn.Conv2d, got ConvTranspose2d"),
    "of another rank": (lambda: nn.Conv1d(4, 4, 3), "conv: expected an nn.Conv2d, got Conv1d"),
    **{
        str(dtype): (
            partial(of_dtype, dtype),
            f"conv: .*float32 or float64, got {dtype}",
        )
        for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn)
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:Lazy modules", "ignore:Complex modules")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_that_have_no_convnn_are_refused(name: str) -> None:
    make, message = CONVOLUTIONS[name]
    with pytest.raises(ConvNNError, match=message):
        ConvNN2d.from_conv(make())
    if isinstance(conv := make(), nn.Conv2d):
        for to, init in itertools.product(("convnn", "hybrid"), ("random", "from_original")):
            with pytest.raises(ConvNNError, match=message):
                convert(conv, to, types=nn.Conv2d, init=init)


def test_a_convolution_without_values_keeps_its_device() -> None:
    layer = ConvNN2d.from_conv(nn.Conv2d(4, 6, 3, padding=1, device="meta"))
    assert layer.weight.is_meta
    assert layer(torch.zeros(1, 4, 5, 5, device="meta")).shape == (1, 6, 5, 5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32, torch.float8_e5m2, "float32"], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_parameters_are_real_numbers(name: str, dtype: Any) -> None:
    with pytest.raises(
        ConvNNError, match=r"^dtype: expected parameters of torch.float16, bfloat16, float32 or float64"
    ):
        KINDS[name](dtype=dtype)
