"""The softmax over few neighbours, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convnn.ops.cpu.softmax import short_softmax


def definition(x: Tensor) -> Tensor:
    powers = (x - x.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 1), (2, 7, 9), (3, 15), (3, 16), (3, 40), (2, 0, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = (torch.randn(shape, dtype=torch.float64) * 5).requires_grad_()
    x, grad = exact.detach().to(dtype).requires_grad_(), torch.randn(shape, dtype=torch.float64)
    weights, expected = short_softmax(x), definition(exact)
    assert weights.is_contiguous()
    torch.testing.assert_close(weights.double(), expected, atol=1e-6, rtol=1e-5)
    (of_x,) = torch.autograd.grad(weights, x, grad.to(dtype), create_graph=True)
    (of_exact,) = torch.autograd.grad(expected, exact, grad, create_graph=True)
    torch.testing.assert_close(of_x.double(), of_exact, atol=1e-6, rtol=1e-5)
    (twice,) = torch.autograd.grad(of_x.square().sum(), x)
    (exactly,) = torch.autograd.grad(of_exact.square().sum(), exact)
    torch.testing.assert_close(twice.double(), exactly, atol=1e-5, rtol=1e-4)


def test_what_is_excluded_weighs_nothing_and_nan_shows() -> None:
    weights = short_softmax(torch.tensor([[0.0, -torch.inf, 0.0], [0.0, torch.nan, 0.0], [-torch.inf] * 3]))
    assert weights[0].tolist() == [0.5, 0.0, 0.5]
    assert weights[1:].isnan().all()
