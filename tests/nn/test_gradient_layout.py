"""Gradients lie in memory as what they belong to: those of a map as a convolution's, those of weights as these."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnn import Blend, ConvNN1d, ConvNN2d, ConvNN3d, Grid, HybridConvNN2d, Random, Window, knn_aggregate

CANDIDATES = ["all", Random(7), Grid(2), Window(3), torch.tensor([1, 3, 4, 6])]
FORMATS = (torch.contiguous_format, torch.channels_last)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"aggregation": "depthwise"},
    {"aggregation": "sum", "bias": False},
    {"groups": 2},
    {"weighting": "softmax", "similarity": "euclidean"},
    {"similarity": "spatial"},
    {"similarity": Blend(0.5)},
    {"stride": 2},
    {"candidate_padding": 0},
    {"padding_mode": "reflect"},
    {"unshuffle": 2, "shuffle": 2},
    {"projection": True, "weighting": "softmax"},
    {"value_coordinates": True},
]


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.requires_grad_()
    y = layer(x)
    incoming = torch.randn(y.shape)  # contiguous, whatever the output is
    return list(torch.autograd.grad(y, [x, *layer.parameters()], incoming))


@pytest.mark.parametrize("candidates", CANDIDATES, ids=["all", "random", "grid", "window", "positions"])
def test_of_convnn2d(candidates: Any) -> None:
    for options in OPTIONS:
        layer = ConvNN2d(4, 4, 3, candidates=candidates, **{"candidate_padding": 1, **options})
        for memory_format in FORMATS:
            x = torch.randn(2, 4, 4, 6).contiguous(memory_format=memory_format)
            found = gradients(layer, x)
            expected = [x, *layer.parameters()]
            assert [part.stride() for part in found] == [part.stride() for part in expected], options
            unbatched = gradients(layer, torch.randn(4, 4, 6))
            assert all(part.is_contiguous() for part in unbatched), options


@pytest.mark.parametrize("groups", [1, 2])
def test_of_other_maps(groups: int) -> None:
    """As of torch's own layers, which answer contiguously to maps of one axis and to maps that are neither."""
    for layer, x in (
        (ConvNN1d(4, 4, 3, groups=groups), torch.randn(2, 4, 8)),
        (ConvNN1d(4, 4, 3, groups=groups), torch.randn(2, 8, 4).transpose(1, 2)),
        (ConvNN2d(4, 4, 3, groups=groups), torch.randn(2, 4, 4, 12)[..., ::2]),
        (ConvNN3d(4, 4, 3, groups=groups), torch.randn(2, 4, 2, 3, 4)),
        (HybridConvNN2d(4, 4, 3, 3, groups=groups), torch.randn(2, 4, 4, 6)),
    ):
        assert gradients(layer, x)[0].is_contiguous()
    x = torch.randn(2, 4, 4, 6).contiguous(memory_format=torch.channels_last)
    assert gradients(HybridConvNN2d(4, 4, 3, 3, groups=groups), x)[0].stride() == x.stride()


def test_of_slot_weights_among_few_candidates() -> None:
    for weighting in ("ones", "softmax"):
        x, weight = torch.randn(2, 8, 4), torch.randn(5, 4, 3, requires_grad=True)
        y = knn_aggregate(x, x, x, weight, k=3, candidates=Random(5), weighting=weighting)
        (gradient,) = torch.autograd.grad(y.sum(), weight)
        assert gradient.stride() == weight.stride()
