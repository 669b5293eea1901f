"""A layer computes the same on a device that has no kernel of ours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from convnn import Blend, ConvNN2d, Grid, Random, Window

from .conftest import OPERATORS

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "all": lambda: ConvNN2d(4, 6, 3, candidate_padding=1),
    "random": lambda: ConvNN2d(4, 6, 3, candidate_padding=1, candidates=Random(7)),
    "every second query": lambda: ConvNN2d(4, 6, 3, candidates=Grid(2), stride=2),
    "weighted": lambda: ConvNN2d(4, 6, 3, candidates=Grid(3), weighting="softmax", groups=2),
    "window": lambda: ConvNN2d(4, 6, 3, candidates=Window(3), similarity="sqeuclidean", weighting="identity"),
    "blend": lambda: ConvNN2d(4, 6, 3, similarity=Blend(0.5), aggregation="depthwise_separable"),
    "one neighbour": lambda: ConvNN2d(4, 6, 1, candidates=Random(5)),
}


def outcome(layer: nn.Module, x: Tensor) -> list[Tensor]:
    y = layer(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("samples", [2, 0])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name: str, samples: int) -> None:
    layer = LAYERS[name]().double().eval()
    x = torch.randn(samples, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    expected = outcome(layer, x)
    with ExitStack() as stack:
        for operator in OPERATORS:
            stack.enter_context(operator.set_kernel_enabled("cpu", enabled=False))
        torch.testing.assert_close(outcome(layer, x), expected, rtol=1e-10, atol=1e-10)
