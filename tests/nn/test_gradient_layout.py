"""Gradients lie in memory as what they belong to: those of a map as a convolution's, those of weights as these."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnn import Blend, ConvNN1d, ConvNN2d, ConvNN3d, HybridConvNN2d, Random, knn_aggregate
from convnn.testing import function_with_gradients, layer_with_gradients

from ..layers import CANDIDATES

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
    """The gradients, of a contiguous one of the output, whatever that is."""
    return list(layer_with_gradients(layer, x).values())[1:]


@pytest.mark.parametrize("name", CANDIDATES)
def test_of_convnn2d(name: str) -> None:
    for options in OPTIONS:
        layer = ConvNN2d(4, 4, 3, candidates=CANDIDATES[name], **{"candidate_padding": 1, **options})
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
        options: dict[str, Any] = {"k": 3, "candidates": Random(5), "weighting": weighting}
        x, weight = torch.randn(2, 8, 4), torch.randn(5, 4, 3)
        results = function_with_gradients(lambda weight: knn_aggregate(x, x, x, weight, **options), weight=weight)  # noqa: B023
        assert results["gradient of weight"].stride() == weight.stride()
