"""Layers whose queries share few candidates: the padding is counted, never written, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convnn import ConvNN1d, ConvNN2d, ConvNN3d, ConvNNError, Grid, Random
from convnn.testing import assert_close, layer_with_gradients, with_gradients

FORMATS = [torch.contiguous_format, torch.channels_last]
POSITIONS = torch.tensor([0, 3, 9, 20, 21, 30, 31, 32, 40])
CANDIDATES = {"random": Random(12), "grid": Grid(4), "positions": POSITIONS}
OPTIONS: dict[str, dict[str, Any]] = {
    "no padding": {},
    "padding": {"candidate_padding": 1},
    "one axis padded": {"candidate_padding": (0, 2)},
    "stride": {"candidate_padding": 1, "stride": (2, 3)},
    "margin": {"candidate_padding": 1, "query_margin": 2},
    "euclidean": {"candidate_padding": 1, "similarity": "sqeuclidean"},
    "dot": {"candidate_padding": 1, "similarity": "dot"},
    "patches": {"candidate_padding": 1, "unshuffle": 2, "shuffle": 2},
    "no bias": {"candidate_padding": 2, "bias": False},
    "self alone": {"k": 1, "candidate_padding": 1},
}


def pair(kind: type[nn.Module], candidates: object, **options: Any) -> tuple[nn.Module, nn.Module]:
    """A layer by itself, and the same one by the plain implementation on a padded copy."""
    options = {"k": 5, **options}
    layer = kind(6, 10, candidates=candidates, **options).double().eval()
    plain = kind(6, 10, candidates=candidates, impl="dense", **options).double().eval()
    plain.load_state_dict(layer.state_dict())
    return layer, plain


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize("memory_format", FORMATS)
def test_it_computes_what_a_padded_copy_gives(name: str, option: str, memory_format: torch.memory_format) -> None:
    layer, plain = pair(ConvNN2d, CANDIDATES[name], **OPTIONS[option])
    x = torch.randn(2, 6, 10, 14, dtype=torch.float64).contiguous(memory_format=memory_format)
    assert_close(layer_with_gradients(layer, x), layer_with_gradients(plain, x))


@pytest.mark.parametrize(("kind", "grid"), [(ConvNN1d, (30,)), (ConvNN3d, (4, 5, 6))])
def test_lines_and_volumes(kind: type[nn.Module], grid: tuple[int, ...]) -> None:
    layer, plain = pair(kind, Random(12), candidate_padding=1)
    x = torch.randn(2, 6, *grid, dtype=torch.float64)
    assert_close(layer_with_gradients(layer, x), layer_with_gradients(plain, x))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("stride", [1, 2])
def test_it_keeps_the_layout(memory_format: torch.memory_format, stride: int) -> None:
    layer, plain = pair(ConvNN2d, Random(12), candidate_padding=1, stride=stride)
    x = torch.randn(2, 6, 8, 9, dtype=torch.float64).contiguous(memory_format=memory_format)
    results = layer_with_gradients(layer, x)
    assert results["output"].is_contiguous(memory_format=memory_format)
    assert results["gradient of input"].is_contiguous(memory_format=memory_format)
    assert_close(results, layer_with_gradients(plain, x))


def test_the_draws_of_training_are_those_of_a_padded_copy() -> None:
    layer, plain = pair(ConvNN2d, Random(12), candidate_padding=1)
    x = torch.randn(2, 6, 8, 9, dtype=torch.float64)
    torch.manual_seed(5)
    first = [layer.train()(x) for _ in range(2)]
    torch.manual_seed(5)
    second = [plain.train()(x) for _ in range(2)]
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)
    assert not torch.equal(*first)


@pytest.mark.parametrize(
    "options",
    [
        {"candidates": Random(12), "candidate_padding": 1, "padding_mode": "reflect"},
        {"candidates": Random(12), "candidate_padding": 2, "query_margin": 1},  # some queries are in the padding
        {"candidates": Random(12), "candidate_padding": 1, "weighting": "softmax"},
        {"candidates": Random(12), "candidate_padding": 1, "value_coordinates": True},
        {"candidates": Random(12), "candidate_padding": 1, "projection": True, "weighting": "softmax"},
        {"candidates": Random(12), "candidate_padding": 1, "groups": 2},
        {"candidates": Random(12), "candidate_padding": 1, "aggregation": "depthwise_separable"},
        {"candidates": Random(111), "candidate_padding": 1},  # more than the 110 tokens there are: all
        {"candidates": Grid(11), "candidate_padding": 1},
        {"candidates": "all", "candidate_padding": 1},
    ],
    ids=lambda options: ", ".join(f"{k}={v}" for k, v in options.items() if k != "candidates"),
)
def test_what_reads_more_of_the_padding_has_it(options: dict[str, Any]) -> None:
    layer, plain = pair(ConvNN2d, **options)
    x = torch.randn(2, 6, 8, 9, dtype=torch.float64)
    assert_close(layer_with_gradients(layer, x), layer_with_gradients(plain, x))


def test_too_few_candidates_are_refused_as_ever() -> None:
    layer = ConvNN2d(6, 10, 9, candidates=Random(7), candidate_padding=1)
    with pytest.raises(ConvNNError, match=r"^k: expected at most 8 \(7 candidates, and itself in slot 0\), got 9;"):
        layer(torch.randn(1, 6, 8, 9))


def test_the_first_layer_of_a_network_asks_for_no_gradient_of_the_image() -> None:
    layer, plain = pair(ConvNN2d, Random(12), candidate_padding=1)
    x = torch.randn(2, 6, 8, 9, dtype=torch.float64)
    ours, theirs = (with_gradients(each(x), dict(each.named_parameters())) for each in (layer, plain))
    assert_close(ours, theirs)


@pytest.mark.parametrize("option", ["padding", "stride", "self alone"])
def test_an_empty_batch(option: str) -> None:
    layer, plain = pair(ConvNN2d, Random(12), **OPTIONS[option])
    x = torch.randn(0, 6, 8, 9, dtype=torch.float64)
    assert_close(layer_with_gradients(layer, x), layer_with_gradients(plain, x))


def test_half_precision_and_autocast() -> None:
    x = torch.randn(2, 6, 8, 9)
    layer = ConvNN2d(6, 10, 5, candidates=Random(12), candidate_padding=1).eval()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, rtol=2e-2, atol=2e-2)
    rounded = x.bfloat16()
    torch.testing.assert_close(layer.bfloat16()(rounded).float(), layer.float()(rounded.float()), rtol=2e-2, atol=2e-2)
