"""The convention ``executed``, against the costs that the method's own description gives, written out by hand.

full search 2 B N M C; aggregation 2 B N k C_in C_out
r candidates: search 2 B N r C; aggregation 2 B (N + r (k - 1)) C_in C_out
"""

import pytest
import torch
from torch import nn

from convnn import ConvNN1d, ConvNN2d, ConvNN3d, ConvNNAttention, Grid, HybridConvNN2d, Random, Window
from convnn.accounting import count_flops

# 48 tokens.
N, GRID = 48, (6, 8)


def flops(layer, *shape):
    torch.manual_seed(2)
    return count_flops(layer, torch.randn(*shape))


@pytest.mark.parametrize("impl", ["tiled", "dense"])
@pytest.mark.parametrize("batch", [1, 3])
def test_all_candidates(batch, impl):
    search, aggregation = 2 * N * N * 6, 2 * N * 5 * 6 * 10
    assert flops(ConvNN2d(6, 10, k=5, impl=impl), batch, 6, *GRID) == batch * (search + aggregation)


@pytest.mark.parametrize(
    ("candidates", "r"),
    [(Random(9), 9), (Grid(3), 9), (torch.arange(0, 48, 4), 12)],
    ids=["random", "grid", "positions"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_few_candidates_are_multiplied_by_the_slot_matrices_once(candidates, r, batch):
    search, aggregation = 2 * N * r * 6, 2 * (N + r * 4) * 6 * 10
    assert flops(ConvNN2d(6, 10, k=5, candidates=candidates), batch, 6, *GRID) == batch * (search + aggregation)


def test_more_candidates_than_tokens_are_all():
    every = flops(ConvNN2d(6, 10, k=5), 1, 6, *GRID)
    assert flops(ConvNN2d(6, 10, k=5, candidates=Random(49)), 1, 6, *GRID) == every
    assert flops(ConvNN2d(6, 10, k=5, candidates=Grid(7)), 1, 6, *GRID) == every


def test_tokens_of_the_padding_are_candidates_and_no_queries():
    padded = 8 * 10
    assert flops(ConvNN2d(6, 10, k=5, candidate_padding=1), 1, 6, *GRID) == 2 * N * padded * 6 + 2 * padded * 5 * 6 * 10
    layer = ConvNN2d(6, 10, k=5, candidate_padding=1, candidates=Random(9))
    assert flops(layer, 1, 6, *GRID) == 2 * N * 9 * 6 + 2 * (N + 9 * 4) * 6 * 10


def test_a_stride_thins_the_queries():
    queries = 3 * 4
    layer = ConvNN2d(6, 10, k=5, stride=2, candidates=Random(9))
    assert flops(layer, 1, 6, *GRID) == 2 * queries * 9 * 6 + 2 * (queries + 9 * 4) * 6 * 10


def test_groups_and_depthwise():
    assert flops(ConvNN2d(6, 10, k=5, groups=2), 1, 6, *GRID) == 2 * N * N * 6 + 2 * N * 5 * 3 * 10
    assert flops(ConvNN2d(6, 6, k=5, aggregation="depthwise"), 1, 6, *GRID) == 2 * N * N * 6 + 2 * N * 5 * 6
    separable = ConvNN2d(6, 10, k=5, aggregation="depthwise_separable")
    assert flops(separable, 1, 6, *GRID) == 2 * N * N * 6 + 2 * N * 5 * 6 + 2 * N * 6 * 10


def test_depthwise_slots_of_few_candidates_are_products_too():
    layer = ConvNN2d(6, 6, k=5, candidates=Random(9), aggregation="depthwise")
    assert flops(layer, 1, 6, *GRID) == 2 * N * 9 * 6 + 2 * (N + 9 * 4) * 6


def test_lines_and_volumes():
    assert flops(ConvNN1d(6, 10, k=3), 1, 6, 20) == 2 * 20 * 20 * 6 + 2 * 20 * 3 * 6 * 10
    layer = ConvNN3d(6, 10, k=3, candidates=Grid(2))
    assert flops(layer, 1, 6, 3, 4, 5) == 2 * 60 * 8 * 6 + 2 * (60 + 8 * 2) * 6 * 10


def test_patches_are_fewer_and_wider_tokens():
    tokens, width = 12, 24
    layer = ConvNN2d(6, 10, k=3, unshuffle=2, shuffle=2)
    assert flops(layer, 1, 6, *GRID) == 2 * tokens * tokens * width + 2 * tokens * 3 * width * 40


def test_projections():
    layer = ConvNN2d(6, 10, k=5, projection=True, weighting="softmax")
    similarities, weighted = 2 * N * N * 6 + 2 * N * 5 * 6, 2 * N * 5 * 6 * 10 + 2 * N * 5 * 10
    assert flops(layer, 1, 6, *GRID) == 3 * (2 * N * 6 * 6) + similarities + weighted


def test_a_hybrid_is_the_sum_of_its_parts():
    layer = HybridConvNN2d(6, 10, 3, k=5, branch_ratio=0.4, candidates=Random(9))
    convnn = 2 * N * 9 * 6 + 2 * (N + 9 * 4) * 6 * 4
    assert flops(layer, 1, 6, *GRID) == convnn + 2 * N * 9 * 6 * 6 + 2 * N * 10 * 10


def test_spatial_neighbours_cost_a_convolution():
    layer = ConvNN2d.from_conv(nn.Conv2d(6, 10, 5, padding=2, stride=2))
    assert flops(layer, 1, 6, *GRID) == 2 * 12 * 25 * 6 * 10


# Attention of 3 heads on 20 tokens of width 12: projections to queries, keys, values and back.
T, C = 20, 12
PROJECTIONS = 2 * T * C * 4 * C


def attention(k, **options):
    return flops(ConvNNAttention(C, 3, k=k, **options), 1, T, C)


def test_attention_to_every_token():
    assert attention(None, aggregation="sum") == PROJECTIONS + 2 * (2 * T * T * C)


def test_knn_attention_sums_k_weighted_values():
    # The k similarities are computed again, pair by pair, for their gradients.
    search, pairs, weighted = 2 * T * T * C, 2 * T * 5 * C, 2 * T * 5 * C
    assert attention(5, aggregation="sum") == PROJECTIONS + search + pairs + weighted


@pytest.mark.parametrize("impl", ["tiled", "dense"])
def test_convnn_attention_weights_the_slots_and_the_neighbours(impl):
    search, pairs, weighted, slots = 2 * T * T * C, 2 * T * 5 * C, 2 * T * 5 * C, 2 * T * 5 * C
    assert attention(5, impl=impl) == PROJECTIONS + search + pairs + weighted + slots


def test_convnn_attention_to_few_candidates():
    search, pairs, weighted = 2 * T * 7 * C, 2 * T * 5 * C, 2 * T * 5 * C
    slots = 2 * (T + 7 * 4) * C
    assert attention(5, candidates=Random(7)) == PROJECTIONS + search + pairs + weighted + slots


def test_standard_slots_of_heads():
    search, pairs, weighted = 2 * T * T * C, 2 * T * 5 * C, 2 * T * 5 * C
    assert attention(5, aggregation="standard") == PROJECTIONS + search + pairs + weighted + 2 * T * 5 * 4 * C


def test_neighbourhood_attention_compares_its_windows_alone():
    window = 2 * T * 7 * C
    layer = {"candidates": Window(7, border="shift"), "aggregation": "sum"}
    assert attention(7, **layer) == PROJECTIONS + 3 * window


@pytest.mark.parametrize(
    "layer",
    [
        ConvNN2d(6, 10, k=5, candidate_padding=1),
        ConvNN2d(6, 10, k=5, candidates=Random(9)),
        HybridConvNN2d(6, 10, candidates=Grid(3)),
        ConvNN2d(6, 10, k=5, projection=True, weighting="softmax", aggregation="depthwise_separable"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_counting_needs_no_numbers(layer):
    """On the meta device nothing is computed, and the same is counted."""
    counted = flops(layer, 2, 6, *GRID)
    assert count_flops(layer.to("meta"), torch.randn(2, 6, *GRID, device="meta")) == counted
