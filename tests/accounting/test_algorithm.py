"""``gather`` and ``published``, against torch's counter and profiler on the algorithm written plainly."""

from collections import Counter

import pytest
import torch
from torch import nn

from convnn import (
    Blend,
    ConvNN1d,
    ConvNN2d,
    ConvNN3d,
    ConvNNAttention,
    ConvNNMultiheadAttention,
    Grid,
    HybridAttention,
    HybridConvNN1d,
    HybridConvNN2d,
    HybridConvNN3d,
    Random,
    Window,
)
from convnn.accounting import count_flops, profile

from .naive import attention, convnn_map, printed, products

MAPS = {
    "plain": ConvNN2d(6, 8, k=5),
    "padded": ConvNN2d(6, 8, k=9, candidate_padding=1),
    "random": ConvNN2d(6, 8, k=5, candidate_padding=1, candidates=Random(20)),
    "all of random": ConvNN2d(6, 8, k=5, candidates=Random(1000)),
    "grid": ConvNN2d(6, 8, k=5, candidate_padding=1, candidates=Grid(3)),
    "all of grid": ConvNN2d(6, 8, k=5, candidates=Grid(9)),
    "blend": ConvNN2d(6, 8, k=5, candidate_padding=1, similarity=Blend(0.5)),
    "coordinates": ConvNN2d(6, 8, k=5, candidate_padding=1, similarity=Blend(0.3), value_coordinates=True),
    "euclidean": ConvNN2d(6, 8, k=5, candidate_padding=1, similarity="euclidean"),
    "groups": ConvNN2d(6, 8, k=5, groups=2),
    "depthwise": ConvNN2d(6, 6, k=5, aggregation="depthwise"),
    "separable": ConvNN2d(6, 8, k=5, candidate_padding=1, aggregation="depthwise_separable"),
    "sum": ConvNN2d(6, 6, k=5, aggregation="sum"),
    "projection": ConvNN2d(6, 8, k=5, candidate_padding=1, projection=True, weighting="softmax"),
    "projection of random": ConvNN2d(
        6, 8, k=5, candidate_padding=1, projection=True, weighting="softmax", candidates=Random(7)
    ),
    "softmax": ConvNN2d(6, 8, k=5, candidate_padding=1, weighting="softmax"),
    "unshuffle": ConvNN2d(6, 8, k=3, candidate_padding=1, unshuffle=2),
    "shuffle": ConvNN2d(6, 8, k=3, shuffle=2),
    "sequence": ConvNN1d(6, 8, k=3, candidate_padding=2, candidates=Grid(4)),
    "volume": ConvNN3d(6, 8, k=5, candidate_padding=1, candidates=Grid(3), similarity=Blend(0.5)),
}
ATTENTION = {
    "attention": ConvNNAttention(12, 3, k=None, aggregation="sum"),
    "with biases": ConvNNAttention(12, 3, k=None, aggregation="sum", qkv_bias=True),
    "knn": ConvNNAttention(12, 3, k=5, aggregation="sum"),
    "one head": ConvNNAttention(12, 1, k=5, proj_bias=False),
    "depthwise": ConvNNAttention(12, 3, k=5),
    "standard": ConvNNAttention(12, 3, k=5, aggregation="standard"),
    "separable": ConvNNAttention(12, 3, k=5, aggregation="depthwise_separable"),
    "random": ConvNNAttention(12, 3, k=5, candidates=Random(7)),
    "grid": ConvNNAttention(12, 3, k=5, candidates=Grid(7), qkv_bias=True),
    "all of random": ConvNNAttention(12, 3, k=5, candidates=Random(99)),
}


def by_operator(layer, x, convention):
    return Counter(profile(layer, x, convention=convention, activations=False, runs=0).operators)


def input_of(layer):
    torch.manual_seed(1)
    return torch.randn(2, 6, *(6, 8, 6)[: layer.dims]) if hasattr(layer, "dims") else torch.randn(2, 20, 12)


def joined(counted):
    """Ours in the words of torch's counter, which has one for all convolutions."""
    names = {"conv1d": "convolution", "conv2d": "convolution", "conv3d": "convolution"}
    total = Counter()
    for name, flops in counted.items():
        total[names.get(name, name)] += flops
    return total


@pytest.mark.parametrize("name", MAPS)
def test_gather_is_the_algorithm_in_full(name):
    layer = MAPS[name].eval()
    x = input_of(layer)
    assert joined(by_operator(layer, x, "gather")) == products(convnn_map, layer, x)


@pytest.mark.parametrize("name", ATTENTION)
def test_gather_is_the_attention_in_full(name):
    layer = ATTENTION[name].eval()
    x = input_of(layer)
    assert joined(by_operator(layer, x, "gather")) == products(attention, layer, x)


@pytest.mark.parametrize("name", MAPS)
def test_published_is_what_the_profiler_prints(name):
    layer = MAPS[name].eval()
    x = input_of(layer)[:1]
    assert by_operator(layer, x, "published") == printed(convnn_map, layer, x)


@pytest.mark.parametrize("name", ATTENTION)
def test_published_is_what_the_profiler_prints_of_attention(name):
    layer = ATTENTION[name].eval()
    x = input_of(layer)[:1]
    assert by_operator(layer, x, "published") == printed(attention, layer, x)


class Plain(nn.Module):
    """Layers of a user's own, some of which the profiler passes over."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.valid = nn.Conv2d(8, 8, 3, padding="valid")
        self.reflected = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect")
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, groups=8, padding=1)
        self.line = nn.Conv1d(8, 8, 3)
        self.with_bias = nn.Linear(8, 5)
        self.without = nn.Linear(5, 4, bias=False)

    def forward(self, x):
        x = self.depthwise(self.reflected(self.valid(self.same(self.first(x)))))
        tokens = self.line(x.flatten(2)).transpose(1, 2).contiguous()
        tokens = self.without(self.with_bias(tokens * 0.5 + 1))
        pairs = tokens.transpose(1, 2)
        return torch.baddbmm(torch.bmm(tokens, pairs), tokens, pairs)


def test_published_is_what_the_profiler_prints_of_any_model():
    model, x = Plain().eval(), torch.randn(1, 3, 12, 12)
    seen = printed(model, x)
    seen["bmm"] += seen.pop("baddbmm")  # one name for both
    assert by_operator(model, x, "published") == seen
    counted = by_operator(model, x, "gather")
    assert counted.total() == count_flops(model, x) == products(model, x).total()
    assert {"conv1d", "conv2d", "mm", "addmm", "bmm"} == set(counted)


def test_a_functional_same_convolution_is_passed_over_too():
    class Functional(nn.Module):
        def forward(self, x):
            kernel = x.new_zeros(4, 4, 3, 3)
            return torch.conv2d(x, kernel, None, 1, "same") + torch.conv2d(x, kernel, padding=1)

    x = torch.randn(1, 4, 6, 6)
    once = 2 * 4 * 4 * 9 * 36
    assert by_operator(Functional(), x, "published") == {"conv2d": once, "add": x.numel()}
    assert by_operator(Functional(), x, "gather") == {"conv2d": 2 * once}


def test_fused_attention_is_two_products():
    class Fused(nn.Module):
        def forward(self, q):
            return nn.functional.scaled_dot_product_attention(q, q, q)

    q = torch.randn(2, 3, 10, 4)
    for device in ("cpu", "meta"):
        for convention in ("gather", "published"):
            assert by_operator(Fused(), q.to(device), convention) == {"bmm": 2 * (2 * 2 * 3 * 10 * 10 * 4)}


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_have_their_names_whatever_runs_below(bias):
    layer = nn.Linear(8, 5, bias=bias)
    x = torch.randn(2, 8, 7).transpose(1, 2)  # not contiguous: torch multiplies first and adds the bias afterwards
    assert by_operator(layer, x, "gather") == {"addmm" if bias else "mm": 2 * 14 * 8 * 5}
    assert by_operator(layer, x, "published") == {"addmm" if bias else "mm": 2 * 14 * 8 * 5}


@pytest.mark.parametrize(
    ("kind", "dims", "mixed"),
    [(HybridConvNN1d, 1, "conv1d"), (HybridConvNN2d, 2, "conv2d"), (HybridConvNN3d, 3, "conv3d")],
)
def test_a_hybrid_is_its_branches_and_the_mix(kind, dims, mixed):
    layer = kind(6, 8, 3, k=5, branch_ratio=0.25, candidates=Random(9))
    x = torch.randn(1, 6, *(6,) * dims)
    tokens, padded = 6**dims, 8**dims
    search, aggregation = 2 * padded * min(9, padded) * 6, 2 * tokens * 5 * 6 * 2
    branch, mix = 2 * tokens * 3**dims * 6 * 6, 2 * tokens * 8 * 8
    expected = Counter({"bmm": search, "conv1d": aggregation}) + Counter({mixed: branch + mix})
    assert by_operator(layer, x, "gather") == expected
    seen = {"bmm": search} if dims == 1 else {"bmm": search, mixed: mix}
    assert by_operator(layer, x, "published") == seen


def test_a_hybrid_of_one_branch():
    x = torch.randn(1, 6, 8, 8)
    alone, mix = 2 * 64 * 9 * 6 * 8, 2 * 64 * 8 * 8
    assert by_operator(HybridConvNN2d(6, 8, branch_ratio=0.0), x, "gather") == {"conv2d": alone + mix}
    assert by_operator(HybridConvNN2d(6, 8, branch_ratio=0.0), x, "published") == {"conv2d": mix}
    counted = by_operator(HybridConvNN2d(6, 8, branch_ratio=1.0), x, "gather")
    assert counted == {"bmm": 2 * 100 * 100 * 6, "conv1d": alone, "conv2d": mix}


def test_a_hybrid_attention_is_its_branches_and_the_mix():
    x = torch.randn(1, 10, 12)
    layer = HybridAttention(12, 1, k=3, branch_ratio=0.25, partner="conv")
    rest = 2 * 10 * 3 * 9 * 9
    expected = {"mm": 2 * 10 * 3 * 3 * 3, "addmm": 2 * 10 * (3 * 3 + 12 * 12), "bmm": 2 * 10 * 10 * 3}
    assert by_operator(layer, x, "gather") == {**expected, "conv1d": 2 * 10 * 3 * 3 + rest}
    assert by_operator(layer, x, "published") == {**expected, "mul": 10 * 3 * 3}
    layer = HybridAttention(12, 1, k=3, branch_ratio=0.25)
    expected["mm"] += 2 * 10 * 9 * 27
    expected["addmm"] += 2 * 10 * 9 * 9
    expected["bmm"] += 2 * (2 * 10 * 10 * 9)
    assert by_operator(layer, x, "gather") == {**expected, "conv1d": 2 * 10 * 3 * 3}


def test_cross_attention_and_the_order_of_axes():
    query, key = torch.randn(2, 5, 8), torch.randn(2, 9, 8)
    layer = ConvNNMultiheadAttention(8, 2, k=3, batch_first=True)
    projections = 2 * 2 * 8 * 8 * (5 + 9 + 9)
    expected = {"addmm": projections + 2 * 2 * 5 * 8 * 8, "bmm": 2 * 2 * 5 * 9 * 8, "conv1d": 2 * 2 * 5 * 3 * 8}
    profiled = profile(layer, query, key, key, convention="gather", activations=False, runs=0)
    assert dict(profiled.operators) == expected
    layer = ConvNNMultiheadAttention(8, 2, k=3)
    inputs = (x.transpose(0, 1) for x in (query, key, key))
    assert dict(profile(layer, *inputs, convention="gather", activations=False, runs=0).operators) == expected


def test_a_convolution_recovered_is_published_as_a_search_among_positions():
    layer = ConvNN2d.from_conv(nn.Conv2d(6, 8, 3, padding=1))
    x = torch.randn(1, 6, 5, 5)
    aggregation = 2 * 25 * 9 * 6 * 8
    assert by_operator(layer, x, "executed") == {"conv2d": aggregation}
    assert by_operator(layer, x, "gather") == {"bmm": 2 * 49 * 9 * 2, "conv1d": aggregation}


def test_windows_and_positions_are_their_tokens():
    x = torch.randn(1, 6, 8, 8)
    window = ConvNN2d(6, 8, k=3, candidates=Window(5))
    assert by_operator(window, x, "gather")["bmm"] == 2 * 64 * 25 * 6
    positions = ConvNN2d(6, 8, k=3, candidates=torch.arange(11))
    assert by_operator(positions, x, "gather")["bmm"] == 2 * 64 * 11 * 6


def test_a_stride_thins_the_outputs_alone():
    layer = ConvNN2d(6, 8, k=3, candidate_padding=1, stride=2)
    counted = by_operator(layer, torch.randn(1, 6, 8, 8), "gather")
    assert counted == {"bmm": 2 * 100 * 100 * 6, "conv1d": 2 * 16 * 3 * 6 * 8}


def test_neighbours_found_before_are_not_searched_again():
    layer, x = ConvNN2d(6, 8, k=3), torch.randn(1, 6, 5, 5)

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer
            self.found = layer.neighbors(x)

        def forward(self, x):
            return self.layer(x, neighbors=self.found)

    assert by_operator(Shared(), x, "gather") == {"conv1d": 2 * 25 * 3 * 6 * 8}


def test_an_unbatched_map():
    layer, x = ConvNN2d(6, 8, k=3), torch.randn(6, 5, 5)
    assert by_operator(layer, x, "gather") == by_operator(layer, x.unsqueeze(0), "gather")
