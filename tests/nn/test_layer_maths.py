"""What ConvNN layers compute: random candidates, projections, coordinates, patches, and every aggregation by einsum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnn import ConvNN1d, ConvNN2d, ConvNN3d, Grid, Random
from convnn.testing import assert_close, with_gradients


def hashed_draw(tokens: int, r: int, seed: int) -> list[int]:
    """The seeded draw in Python's whole numbers: what every process, device and version must repeat."""
    hashes = []
    for token in range(tokens):
        h = (token + (seed * 0x9E3779B1 & 0xFFFFFFFF)) & 0xFFFFFFFF
        for _ in range(2):
            h = (((h >> 16) ^ h) * 0x45D9F3B) & 0xFFFFFFFF
        hashes.append((h >> 16) ^ h)
    return sorted(sorted(range(tokens), key=hashes.__getitem__)[:r])


def drawn(layer: ConvNN2d, x: Tensor) -> set[int]:
    """The tokens that occur in any slot but the query's own."""
    return set(layer.neighbors(x).index[..., 1:].flatten().tolist())


# ------------------------------------------------------------------------------------------------ random candidates
def test_random_candidates_are_redrawn_in_training() -> None:
    layer, x = ConvNN2d(4, 4, k=3, candidates=Random(6)), torch.randn(2, 4, 6, 6)
    draws = [drawn(layer, x) for _ in range(8)]
    assert all(len(draw) <= 6 for draw in draws)
    assert len({frozenset(draw) for draw in draws}) > 1
    assert not torch.equal(layer(x), layer(x))


def test_torchs_seed_decides_the_draw_of_training() -> None:
    layer, x = ConvNN2d(4, 4, k=3, candidates=Random(6)), torch.randn(2, 4, 6, 6)
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(layer(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_a_generator_decides_the_draw_of_training() -> None:
    generator, x = torch.Generator().manual_seed(3), torch.randn(2, 4, 6, 6)
    layer = ConvNN2d(4, 4, k=3, candidates=Random(6, generator=generator))
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    generator.manual_seed(3)
    torch.manual_seed(99)
    assert torch.equal(layer(x), first)


def test_a_seed_draws_the_same_at_every_call_of_training() -> None:
    layer, x = ConvNN2d(4, 4, k=7, candidates=Random(7, seed=5)), torch.randn(1, 4, 6, 6)
    assert torch.equal(layer(x), layer(x))
    assert drawn(layer, x) == set(hashed_draw(36, 7, seed=5))


@pytest.mark.parametrize("seed", [0, 7, 12345])
def test_an_evaluation_draws_the_same_in_every_process(seed: int) -> None:
    layer, x = ConvNN2d(4, 4, k=6, candidate_padding=1, candidates=Random(6)).eval(), torch.randn(1, 4, 6, 6)
    layer.eval_seed = seed
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(2)
    assert torch.equal(layer(x), first)
    assert drawn(layer, x) == set(hashed_draw(64, 6, seed))  # padding counts: it is drawn too


def test_the_seeded_draw_is_pinned() -> None:
    assert Random(5, seed=0).draw(20, torch.device("cpu")).tolist() == hashed_draw(20, 5, 0) == [0, 7, 9, 11, 17]


def test_seeded_draws_are_fair() -> None:
    counts = torch.zeros(30)
    for seed in range(600):
        counts[Random(6, seed=seed).draw(30, torch.device("cpu"))] += 1
    assert counts.sum() == 3600
    assert (counts - 120).abs().max() < 60  # 6 standard deviations


def test_an_evaluation_repeats_after_loading_and_after_training() -> None:
    layer, x = ConvNN2d(4, 4, k=3, candidates=Random(6)).eval(), torch.randn(2, 4, 6, 6)
    expected = layer(x)
    fresh = ConvNN2d(4, 4, k=3, candidates=Random(6)).eval()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), expected)
    layer.train()
    layer(x)
    assert torch.equal(layer.eval()(x), expected)


def test_one_draw_serves_the_whole_batch() -> None:
    layer, x = ConvNN2d(4, 4, k=6, candidates=Random(6)), torch.randn(5, 4, 6, 6)
    index = layer.neighbors(x).index
    assert len(index[..., 1:].unique()) == 6


@pytest.mark.parametrize("candidates", [Random(100), Grid(7)])
def test_more_candidates_than_tokens_are_all_tokens(candidates: Any) -> None:
    x, everyone = torch.randn(2, 4, 6, 6), ConvNN2d(4, 4, k=5)
    layer = ConvNN2d(4, 4, k=5, candidates=candidates)
    layer.load_state_dict(everyone.state_dict())
    assert torch.equal(layer(x), everyone(x))


def test_given_positions_are_the_only_candidates() -> None:
    positions = torch.tensor([30, 2, 17, 8])
    layer, x = ConvNN2d(4, 4, k=4, candidates=positions), torch.randn(1, 4, 6, 6)
    assert drawn(layer, x) <= set(positions.tolist())
    assert layer.neighbors(x).index[0, :, 0].tolist() == list(range(36))
    before = layer(x)
    positions.zero_()  # the layer keeps its own
    assert torch.equal(layer(x), before)


# ------------------------------------------------------------------------------------------------ every part, by einsum
def einsum_oracle(layer: Any, x: Tensor) -> Tensor:
    """docs/operator.md, on the layer's own neighbours; no padding, no patches, no stride."""
    tokens = x.flatten(2).transpose(1, 2)
    found = layer.neighbors(x)
    value = tokens if layer.value_projection is None else tokens @ layer.value_projection.weight.T
    if layer.value_coordinates:
        height, width = x.shape[2:]
        column, row = (torch.linspace(-1, 1, size, dtype=torch.float64) for size in (width, height))
        p = torch.stack([column.repeat(height), row.repeat_interleave(width)], dim=1)
        value = torch.cat([value, p.expand(len(x), -1, -1)], dim=2)
    rho = {
        "ones": torch.ones_like(found.similarity),
        "identity": found.similarity,
        "softmax": (found.similarity / layer.temperature).softmax(-1),
    }[layer.weighting]
    batch = torch.arange(len(x)).view(-1, 1, 1)
    near = value[batch, found.index] * rho.unsqueeze(-1)
    channels = value.shape[2]
    if layer.aggregation == "sum":
        out = torch.einsum("bnkc->bnc", near)
    elif layer.aggregation == "standard":
        full = torch.zeros(layer.weight.shape[0], channels, near.shape[2]).double()
        for o in range(full.shape[0]):
            group = o * layer.groups // full.shape[0]
            width = channels // layer.groups
            full[o, group * width : (group + 1) * width] = layer.weight[o]
        out = torch.einsum("bnkc,ock->bno", near, full)
    else:
        times = layer.weight.shape[0] // channels
        out = torch.einsum("bnkc,ctk->bnct", near, layer.weight.view(channels, times, -1)).flatten(2)
    if layer.aggregation == "depthwise_separable":
        out = out @ layer.pointwise.weight.T + layer.pointwise.bias
    elif layer.bias is not None:
        out = out + layer.bias
    return out.transpose(1, 2).unflatten(2, x.shape[2:])


LAYERS: list[tuple[int, dict[str, Any]]] = [
    (6, {}),
    (6, {"groups": 2}),
    (6, {"bias": False, "weighting": "identity"}),
    (8, {"aggregation": "depthwise"}),
    (8, {"aggregation": "depthwise", "groups": 4, "weighting": "softmax"}),
    (6, {"aggregation": "depthwise_separable"}),
    (6, {"aggregation": "depthwise_separable", "projection": True, "weighting": "softmax", "value_coordinates": True}),
    (4, {"aggregation": "sum", "weighting": "softmax", "temperature": 0.3}),
    (6, {"aggregation": "sum", "value_coordinates": True}),
    (6, {"value_coordinates": True}),
    (6, {"value_coordinates": True, "groups": 3}),
    (6, {"projection": True, "weighting": "softmax", "similarity": "dot"}),
    (4, {"aggregation": "sum", "k": None, "weighting": "softmax", "similarity": "dot", "include_self": False}),
]


@pytest.mark.parametrize("impl", ["auto", "dense"])
@pytest.mark.parametrize(("out_channels", "options"), LAYERS)
def test_every_aggregation_is_its_einsum(out_channels: int, options: dict[str, Any], impl: str) -> None:
    layer = ConvNN2d(4, out_channels, **{"k": 5, "impl": impl, **options}).double()
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    inputs = {"input": x, **dict(layer.named_parameters())}
    assert_close(with_gradients(layer(x), inputs), with_gradients(einsum_oracle(layer, x), inputs))


def test_projections_choose_the_neighbours() -> None:
    layer, x = (
        ConvNN2d(4, 4, k=3, projection=True, weighting="softmax").double(),
        torch.randn(1, 4, 5, 6, dtype=torch.float64),
    )
    tokens = x[0].flatten(1).T
    query, key = tokens @ layer.query_projection.weight.T, tokens @ layer.key_projection.weight.T
    similarity = nn.functional.cosine_similarity(query[:, None], key[None], dim=2)
    own = similarity.diagonal().clone()
    best = similarity.fill_diagonal_(-2).topk(2)
    found = layer.neighbors(x)
    assert torch.equal(found.index[0, :, 1:], best.indices)
    torch.testing.assert_close(found.similarity[0], torch.cat([own[:, None], best.values], 1), rtol=0, atol=1e-12)


def test_every_token_needs_no_k() -> None:
    options: dict[str, Any] = {"aggregation": "sum", "weighting": "softmax", "similarity": "dot", "include_self": False}
    layer = ConvNN2d(4, 4, k=None, **options)
    for size in (3, 6):
        x = torch.randn(2, 4, size, 5)
        tokens = x.flatten(2).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        torch.testing.assert_close(layer(x), attended.transpose(1, 2).view_as(x))
        assert layer.neighbors(x).index.shape == (2, size * 5, size * 5)


# ------------------------------------------------------------------------------------------------ patches as tokens
def test_a_sequence_is_folded_and_spread_interleaving() -> None:
    fold = ConvNN1d(1, 2, k=1, unshuffle=2, bias=False)  # k = 1 is the token itself
    fold.weight.data.copy_(torch.eye(2).view(2, 2, 1))
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]])
    assert fold(x).tolist() == [[[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]]
    spread = ConvNN1d(2, 1, k=1, shuffle=2, bias=False)
    spread.weight.data.copy_(torch.eye(2).view(2, 2, 1))
    assert spread(fold(x)).tolist() == x.tolist()
    assert spread(torch.tensor([[[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]])).tolist() == [
        [[1.0, 10.0, 2.0, 20.0, 3.0, 30.0]]
    ]


@pytest.mark.parametrize(
    "options", [{}, {"candidate_padding": 1}, {"similarity": "sqeuclidean"}, {"candidates": Random(5, 3)}]
)
@pytest.mark.parametrize(("unshuffle", "shuffle"), [(2, 1), (1, 2), (2, 2), (3, 2)])
def test_patches_are_torchs_pixel_shuffles_around_the_layer(
    unshuffle: int, shuffle: int, options: dict[str, Any]
) -> None:
    layer = ConvNN2d(3, 5, k=4, unshuffle=unshuffle, shuffle=shuffle, **options)
    plain = ConvNN2d(3 * unshuffle**2, 5 * shuffle**2, k=4, **options)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 6, 12)
    folded = nn.functional.pixel_unshuffle(x, unshuffle)
    assert torch.equal(layer(x), nn.functional.pixel_shuffle(plain(folded), shuffle))
    assert torch.equal(layer.neighbors(x).index, plain.neighbors(folded).index)


def test_patches_of_a_volume_go_there_and_back() -> None:
    layer = ConvNN3d(2, 2, k=1, unshuffle=2, shuffle=2, bias=False)
    layer.weight.data.copy_(torch.eye(16).unsqueeze(2))
    x = torch.randn(2, 2, 4, 2, 6)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_and_stride_give_the_size_of_both(stride: int) -> None:
    layer = ConvNN2d(3, 4, k=3, unshuffle=2, shuffle=2, stride=stride)
    assert layer(torch.randn(1, 3, 8, 12)).shape == (1, 4, 8 // stride, 12 // stride)
