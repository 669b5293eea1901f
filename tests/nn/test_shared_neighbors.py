"""Neighbours found once and given to layers: the same answer as the layer's own search, or another layer's choice."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import convnn
from convnn import ConvNN1d, ConvNN2d, ConvNN3d, ConvNNAttention, ConvNNError, Grid, HybridAttention, HybridConvNN2d
from convnn.testing import assert_close, with_gradients

MAPS: list[dict[str, Any]] = [
    {},
    {"candidate_padding": 1, "stride": 2},
    {"weighting": "softmax", "temperature": 0.5, "projection": True},
    {"weighting": "identity", "groups": 2, "bias": False},
    {"aggregation": "depthwise"},
    {"aggregation": "depthwise_separable", "value_coordinates": True},
    {"aggregation": "sum"},
    {"unshuffle": 2, "shuffle": 2},
    {"candidates": Grid(3), "candidate_padding": 1},
    {"similarity": "spatial", "candidate_padding": 1},
    {"similarity": convnn.Blend(0.5), "impl": "dense"},
]


@pytest.mark.parametrize("options", MAPS, ids=str)
def test_a_layers_own_neighbours_change_nothing(options: dict[str, Any]) -> None:
    layer = ConvNN2d(4, 4, 9, **options).double()
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x, layer.neighbors(x)), layer(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x[0], layer.neighbors(x[0])), layer(x[0]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "grid"), [(ConvNN1d, (9,)), (ConvNN3d, (3, 4, 2))])
def test_in_one_and_three_axes(kind: Any, grid: tuple[int, ...]) -> None:
    layer, x = kind(4, 6, 3, candidate_padding=1), torch.randn(2, 4, *grid)
    torch.testing.assert_close(layer(x, layer.neighbors(x)), layer(x), rtol=1e-5, atol=1e-6)


def test_the_hybrids_pass_them_to_their_convnn() -> None:
    hybrid, x = HybridConvNN2d(4, 8, 3, k=5, groups=2), torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(hybrid(x, hybrid.neighbors(x)), hybrid(x), rtol=1e-5, atol=1e-6)
    attention, tokens = HybridAttention(16, 2, k=5), torch.randn(2, 12, 16)
    own = attention(tokens, neighbors=attention.neighbors(tokens))
    torch.testing.assert_close(own, attention(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["sum", "depthwise", "standard", "depthwise_separable"])
def test_attention_takes_neighbours_and_their_similarities(aggregation: str) -> None:
    layer, tokens = ConvNNAttention(16, 4, k=5, aggregation=aggregation), torch.randn(2, 12, 16)
    found = layer.neighbors(tokens)
    torch.testing.assert_close(layer(tokens, neighbors=found), layer(tokens), rtol=1e-5, atol=1e-6)
    # By hand, with a sum: softmax of the similarities given, of the values at the places given.
    if aggregation == "sum":
        _, _, value = layer.qkv(tokens).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        flipped = convnn.Neighbors(found.similarity.flip(3), found.index)
        rows = torch.stack([value[b, h, found.index[b, h]] for b in range(2) for h in range(4)]).unflatten(0, (2, 4))
        mixed = (rows * flipped.similarity.softmax(-1).unsqueeze(-1)).sum(3).transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer(tokens, neighbors=flipped), layer.proj(mixed), rtol=1e-5, atol=1e-6)


def test_the_blocks_of_a_stage_share_one_search() -> None:
    """The second block aggregates the first one's neighbours, not those that it would find itself."""
    first, second = ConvNN2d(4, 4, 3), ConvNN2d(4, 4, 3)
    x = torch.randn(2, 4, 5, 5)
    found = first.neighbors(x)
    h = torch.relu(first(x, found))
    y = second(h, found)
    tokens = h.flatten(2).transpose(1, 2)
    assert second.weight is not None
    assert second.bias is not None
    rows = torch.stack([tokens[b, found.index[b]] for b in range(2)])
    expected = torch.einsum("bnkc,ock->bon", rows, second.weight) + second.bias.unsqueeze(1)
    torch.testing.assert_close(y.flatten(2), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(y, second(h))


def test_a_spatial_layer_takes_other_neighbours_too() -> None:
    """A layer that runs the native convolution aggregates what it is given all the same."""
    layer, x = ConvNN2d.from_conv(nn.Conv2d(4, 4, 3, padding=1)), torch.randn(1, 4, 5, 5)
    nearest = layer.neighbors(x)
    torch.testing.assert_close(layer(x, nearest), layer(x), rtol=1e-5, atol=1e-6)
    other = convnn.Neighbors(nearest.similarity, nearest.index.flip(2))
    assert not torch.allclose(layer(x, other), layer(x))


def test_gradients_reach_what_the_neighbours_came_from() -> None:
    layer = ConvNN2d(4, 4, 3, weighting="softmax", projection=True).double()
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    inputs = {"input": x, **dict(layer.named_parameters())}
    assert_close(with_gradients(layer(x, layer.neighbors(x)), inputs), with_gradients(layer(x), inputs))


def test_shared_neighbours_compile_without_breaks() -> None:
    layers = nn.ModuleList([ConvNN2d(4, 4, 3), ConvNN2d(4, 4, 3)])

    def stage(x: torch.Tensor) -> torch.Tensor:
        found = layers[0].neighbors(x)  # type: ignore[operator]
        for layer in layers:
            x = layer(x, found).relu()
        return x

    x = torch.randn(1, 4, 5, 5)
    compiled = torch.compile(stage, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), stage(x), rtol=1e-5, atol=1e-6)


ATTENTION = ConvNNAttention(16, 4, k=5)
MAP, TOKENS = torch.zeros(2, 4, 5, 5), torch.zeros(2, 12, 16)
WRONG: dict[str, tuple[Any, str]] = {
    "not neighbours": (
        lambda: ConvNN2d(4, 4, 3)(MAP, torch.zeros(2, 25, 3)),
        "neighbors: expected a convnn.Neighbors",
    ),
    "another k": (
        lambda: ConvNN2d(4, 4, 3)(MAP, ConvNN2d(4, 4, 5).neighbors(MAP)),
        "neighbors: expected (N, k) = (25, 3), the layer's queries and slots, got (25, 5)",
    ),
    "another map": (lambda: ConvNN2d(4, 4, 3)(MAP, ConvNN2d(4, 4, 3).neighbors(MAP[..., 1:])), "got (20, 3)"),
    "a padded map": (
        lambda: ConvNN2d(4, 4, 3)(MAP, ConvNN2d(4, 4, 3, candidate_padding=1).neighbors(MAP + torch.rand(5, 5))),
        "neighbors.index: expected positions in [0, 25)",
    ),
    "other heads": (
        lambda: ATTENTION(TOKENS, neighbors=ConvNNAttention(16, 2, k=5).neighbors(TOKENS)),
        "neighbors: expected (B, H, N, k) with B, H = (2, 4), got (2, 2, 12, 5)",
    ),
    "no heads": (
        lambda: ATTENTION(TOKENS, neighbors=convnn.knn_search(TOKENS, TOKENS, 5)),
        "neighbors: expected (B, H, N, k) with B, H = (2, 4), got (2, 12, 5)",
    ),
    "attention: not neighbours": (
        lambda: ATTENTION(TOKENS, neighbors=TOKENS),
        "neighbors: expected a convnn.Neighbors, got Tensor",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_neighbours_that_do_not_fit_are_refused(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(ConvNNError, match=re.escape(message)):
        call()
