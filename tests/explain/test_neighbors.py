import pytest
import timm
import torch
from torch import nn

from convnn import ConvNN2d, ConvNNAttention, ConvNNError, HybridConvNN2d, Random
from convnn.explain import NeighborMap, capture_inputs, neighbor_map, neighbor_maps
from convnn.models import SmallConvNet, small_transformer, swap_layers


def test_convolution_gathers_its_window_in_raster_order():
    found = neighbor_map(nn.Conv2d(2, 2, 3, padding=1), torch.randn(1, 2, 5, 6), (2, 4))
    assert found.positions == tuple((row, column) for row in (1, 2, 3) for column in (3, 4, 5))
    assert (found.grid, found.query, found.weight) == ((5, 6), (2, 4), ())


def test_padding_is_outside_the_map():
    found = neighbor_map(nn.Conv2d(2, 2, 3, padding=1), torch.randn(1, 2, 5, 6), (0, 0))
    assert found.positions[0] == (-1, -1)
    assert found.inside() == [False, False, False, False, True, True, False, True, True]


def test_stride_and_missing_padding_move_the_query():
    strided = neighbor_map(nn.Conv2d(1, 1, 3, stride=2, padding=1), torch.randn(1, 1, 6, 6), (1, 2))
    assert (strided.query, strided.positions[4]) == ((2, 4), (2, 4))
    inner = neighbor_map(nn.Conv2d(1, 1, 3), torch.randn(1, 1, 6, 6), (0, 0))
    assert (inner.query, inner.positions[0]) == ((1, 1), (0, 0))


def test_feature_neighbours_are_those_of_the_layer():
    x = torch.randn(2, 4, 5, 7)
    layer = ConvNN2d(4, 4, k=6, candidate_padding=(1, 2))
    found = neighbor_map(layer, x, (3, 2))
    raw = layer.neighbors(x)
    row = 3 * 7 + 2
    for position, index in zip(found.positions, raw.index[0, row].tolist(), strict=True):
        assert (position[0] + 1) * (7 + 4) + position[1] + 2 == index
    assert found.positions[0] == found.query == (3, 2)
    assert found.similarity == pytest.approx(raw.similarity[0, row].tolist())


def test_a_pixel_finds_its_twin():
    x = torch.rand(1, 3, 4, 4) + 0.5
    x[0, :, 3, 3] = 2 * x[0, :, 0, 1] * torch.tensor([1.0, 1.0, 1.0])
    assert neighbor_map(ConvNN2d(3, 3, k=2), x, (0, 1)).positions == ((0, 1), (3, 3))


def test_hybrid_shows_its_convnn_branch():
    x = torch.randn(1, 4, 5, 5)
    layer = HybridConvNN2d(4, 4, k=4)
    assert neighbor_map(layer, x, (2, 2)).positions == neighbor_map(layer.convnn, x, (2, 2)).positions


def test_unshuffled_layers_gather_patches():
    found = neighbor_map(ConvNN2d(2, 2, k=3, unshuffle=2, shuffle=2), torch.randn(1, 2, 8, 6), (3, 2))
    assert found.grid == (4, 3)
    assert all(found.inside())


def test_attention_gathers_everything_and_its_weights_sum_to_one():
    attention = timm.layers.Attention(8, 2)
    found = neighbor_map(attention, torch.randn(1, 9, 8), (1, 2), head=1)
    assert sorted(found.positions) == [(row, column) for row in range(3) for column in range(3)]
    assert sum(found.weight) == pytest.approx(1.0)
    assert list(found.weight) == sorted(found.weight, reverse=True)


def test_class_tokens_are_left_out():
    found = neighbor_map(
        ConvNNAttention(8, 2, k=None, aggregation="sum"), torch.randn(1, 7, 8), (1, 2), grid=(2, 3), prefix=1
    )
    assert len(found.positions) == 6
    assert sum(found.weight) < 1


def test_maps_of_a_whole_model():
    model = swap_layers(SmallConvNet(in_channels=1, width=8), "hybrid", k=4)
    maps = neighbor_maps(model, torch.randn(1, 8, 8), (2, 5))
    assert list(maps) == ["stem.0", "body.0.0", "body.1.0"]
    assert all(found.query == (2, 5) and len(found.positions) == 4 for found in maps.values())


def test_maps_of_a_transformer_count_patches():
    maps = neighbor_maps(swap_layers(small_transformer(in_channels=1), "knn", k=5), torch.randn(1, 8, 8), (3, 7))
    assert list(maps) == ["blocks.0.attn", "blocks.1.attn"]
    assert all((found.query, found.grid, len(found.positions)) == ((1, 3), (4, 4), 5) for found in maps.values())


def test_maps_of_strided_and_narrowing_layers_stay_in_range():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1))
    maps = neighbor_maps(model, torch.randn(1, 8, 8), (7, 0))
    assert list(maps) == ["0", "1"]
    assert maps["0"].query == (6, 1)


def test_capture_runs_once_without_a_trace():
    model = SmallConvNet(in_channels=1).train()
    images = torch.randn(2, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    caught = capture_inputs(model, images)
    assert torch.equal(caught["stem.0"][1], images)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_multihead_attention_is_caught_batch_first():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            tokens = x.flatten(2).permute(2, 0, 1)
            return self.attention(query=tokens, key=tokens, value=tokens)[0]

    maps = neighbor_maps(Block(), torch.randn(8, 3, 3), (0, 2))
    assert maps["attention"].query == (0, 2)
    assert len(maps["attention"].positions) == 9


def test_random_candidates_are_those_of_evaluation():
    layer = ConvNN2d(4, 4, k=3, candidates=Random(6)).train()
    x = torch.randn(1, 4, 6, 6)
    assert neighbor_map(layer, x, (1, 1)) == neighbor_map(layer, x, (1, 1))


@pytest.mark.parametrize(
    ("layer", "shape", "options", "message"),
    [
        (nn.Linear(2, 2), (1, 2), {}, "layer: expected a layer that gathers neighbours, got Linear"),
        (ConvNN2d(2, 2, k=2), (1, 2, 3, 4), {"query": (3, 0)}, r"query: expected a row in 0..2 and a column in 0..3"),
        (timm.layers.Attention(4, 2), (1, 10, 4), {}, r"grid: expected rows x columns = 10 tokens, got \(3, 3\)"),
    ],
)
def test_what_cannot_be_shown(layer, shape, options, message):
    with pytest.raises(ConvNNError, match=message):
        neighbor_map(layer, torch.randn(shape), **{"query": (0, 0), **options})


def test_a_map_is_a_value():
    assert NeighborMap((1, 1), (0, 0), ((0, 0),), (1.0,)) == NeighborMap((1, 1), (0, 0), ((0, 0),), (1.0,))


def test_attention_of_another_kind_is_left_out_of_a_model_s_maps():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), AttentionInWindows())
    assert set(neighbor_maps(model, torch.randn(3, 6, 6), (2, 3))) == {"0"}
    with pytest.raises(ConvNNError, match="layer: expected a layer that gathers neighbours, got AttentionInWindows"):
        neighbor_map(AttentionInWindows(), torch.randn(1, 36, 8), (2, 3))


class AttentionInWindows(nn.Module):
    """Has what timm's Attention has, and computes something else, as Swin's does."""

    def __init__(self):
        super().__init__()
        self.qkv, self.num_heads = nn.Linear(8, 24), 2

    def forward(self, x):
        return x
