"""The softmax over few neighbours, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convnn.ops.softmax import short_softmax

from ..operators import derivatives


def definition(x: Tensor) -> Tensor:
    powers = (x - x.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 1), (2, 7, 9), (3, 15), (3, 16), (3, 40), (2, 0, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = torch.randn(shape, dtype=torch.float64) * 5
    results = zip(derivatives(short_softmax, exact.to(dtype)), derivatives(definition, exact), strict=True)
    for order, (ours, expected) in enumerate(results):
        scale = 10.0 if order == 2 else 1.0
        torch.testing.assert_close(ours.double(), expected, atol=1e-6 * scale, rtol=1e-5 * scale)
    assert short_softmax(exact.to(dtype)).is_contiguous()


def test_what_is_excluded_weighs_nothing_and_nan_shows() -> None:
    weights = short_softmax(torch.tensor([[0.0, -torch.inf, 0.0], [0.0, torch.nan, 0.0], [-torch.inf] * 3]))
    assert weights[0].tolist() == [0.5, 0.0, 0.5]
    assert weights[1:].isnan().all()
