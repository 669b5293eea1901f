"""HybridConvNN1d, 2d and 3d: two branches that see the whole input, ConvNN first, and a mix."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convnn
from convnn import Grid, HybridConvNN1d, HybridConvNN2d, HybridConvNN3d, Random

KINDS: dict[int, Any] = {1: (HybridConvNN1d, nn.Conv1d), 2: (HybridConvNN2d, nn.Conv2d), 3: (HybridConvNN3d, nn.Conv3d)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"kernel_size": 5, "k": 4, "branch_ratio": 0.25},
    {"kernel_size": (3, 1), "k": 4, "stride": (2, 1), "bias": False},
    {"k": 4, "padding": "valid", "dilation": 2},
    {"k": 4, "padding": (2, 0), "stride": 2, "dilation": (1, 2), "similarity": "sqeuclidean"},
    {"k": 4, "groups": 2, "candidates": Grid(3)},
    {"k": 4, "groups": 4, "padding_mode": "reflect"},
    {"k": 4, "unshuffle": 2, "shuffle": 2},
    {"k": 4, "aggregation": "depthwise_separable", "projection": True, "weighting": "softmax", "convnn_bias": False},
    {"k": 4, "branch_ratio": 0.0},
    {"k": 4, "branch_ratio": 1.0, "padding_mode": "circular"},
    {"kernel_size": 2, "k": 4},
    {"kernel_size": (3, 4), "k": 4, "dilation": 2, "candidate_padding": 0},
    {"kernel_size": 1, "k": 1, "candidate_padding": 1},
    {"kernel_size": 5, "k": 4, "padding": 1, "stride": 2, "candidate_padding": (0, 3)},
]


def by_hand(layer: Any, x: Tensor) -> Tensor:
    """docs/layers.md: both branches on their input, ConvNN's first, and the 1x1."""
    near = rest = x
    if layer.groups > 1:
        near, rest = x[:, : layer.convnn_channels], x[:, layer.convnn_channels :]
    branches = [branch(part) for branch, part in ((layer.convnn, near), (layer.conv, rest)) if branch is not None]
    return layer.mix(torch.cat(branches, dim=1))


@pytest.mark.parametrize("options", OPTIONS)
def test_forward_is_both_branches_and_the_mix(options: dict[str, Any]) -> None:
    layer, x = HybridConvNN2d(4, 8, **options), torch.randn(2, 4, 8, 10)
    y = layer(x)
    torch.testing.assert_close(y, by_hand(layer, x), rtol=0, atol=0)
    torch.testing.assert_close(layer(x[0]), y[0], rtol=1e-5, atol=1e-6)
    plain = {"kernel_size": 3, "padding": "same", **options}
    kernel, padding = plain["kernel_size"], plain["padding"]
    radius = torch.tensor(kernel).expand(2) // 2 * torch.tensor(plain.get("dilation", 1)).expand(2)
    sizes = {"same": tuple(radius.tolist()), "valid": 0}.get(padding, padding) if isinstance(padding, str) else padding
    if any(size % 2 == 0 for size in torch.tensor(kernel).expand(2)):
        sizes = "same"
    conv = nn.Conv2d(4, 8, kernel, stride=plain.get("stride", 1), dilation=plain.get("dilation", 1), padding=sizes)
    assert y.shape == conv(x).shape


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_grid_at_every_call(dims: int, stride: int) -> None:
    kind, conv_kind = KINDS[dims]
    layer, conv = kind(3, 4, 3, k=3, stride=stride), conv_kind(3, 4, 3, stride=stride, padding=1)
    for grid in [(7, 6, 5), (4, 5, 3)]:
        x = torch.randn(2, 3, *grid[:dims])
        assert layer(x).shape == conv(x).shape
        assert layer.neighbors(x).index.shape == (2, conv(x)[0, 0].numel(), 3)


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0), (0.25, 2), (0.29, 2), (0.5, 5), (0.7, 7), (1, 10)])
def test_the_ratio_is_the_floor_of_the_channels(ratio: float, share: int) -> None:
    layer = HybridConvNN2d(3, 10, branch_ratio=ratio)
    assert (layer.convnn.out_channels if layer.convnn else 0) == share
    assert (layer.conv.out_channels if layer.conv else 0) == 10 - share
    assert layer.mix.weight.shape == (10, 10, 1, 1)
    assert layer.mix.bias is not None


def test_a_ratio_that_is_whole_in_decimal_loses_no_channel() -> None:
    assert HybridConvNN2d(3, 100, branch_ratio=0.29).convnn.out_channels == 29


def test_an_even_kernel_is_torchs_padding_same() -> None:
    layer, x = HybridConvNN2d(4, 8, 2, k=4, branch_ratio=0.5), torch.randn(2, 4, 5, 7)
    assert layer.conv is not None
    conv = nn.Conv2d(4, 4, 2, padding="same")
    conv.load_state_dict(layer.conv.state_dict())
    torch.testing.assert_close(layer.conv(x), conv(x), rtol=0, atol=0)


@pytest.mark.parametrize(("padding", "given"), [("same", 0), ("same", 1), ("same", 3), (0, 0), (0, 2), (2, 1), (2, 4)])
def test_candidate_padding_moves_no_query(padding: Any, given: int) -> None:
    """The queries stand on the kernel's centres, whatever the ConvNN's own padding adds to its candidates."""
    layer = HybridConvNN2d(4, 8, 3, k=3, padding=padding, candidate_padding=given).double()
    x = torch.randn(1, 4, 6, 5).double()
    around = {"same": 1}.get(padding, padding)
    centres = nn.functional.pad(x, (around,) * 4)[:, :, 1:-1, 1:-1].flatten(2)
    keys = nn.functional.pad(x, (given,) * 4).flatten(2)
    found = convnn.knn_search(centres.transpose(1, 2), keys.transpose(1, 2), 3)
    # Where the query is a zero token every similarity is 0, and any neighbours are right.
    real = (centres != 0).any(1)[0]
    assert layer.neighbors(x).index[0, real, 0].tolist() == found.index[0, real, 0].tolist()
    assert layer(x).shape == nn.Conv2d(4, 8, 3, padding=padding).double()(x).shape


def test_ratio_0_is_the_convolution_and_the_mix() -> None:
    layer, x = HybridConvNN2d(4, 6, 3, branch_ratio=0.0), torch.randn(2, 4, 5, 7)
    assert layer.convnn is None
    assert set(layer.state_dict()) == {"conv.weight", "conv.bias", "mix.weight", "mix.bias"}
    convolution = nn.functional.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)
    torch.testing.assert_close(
        layer(x), nn.functional.conv2d(convolution, layer.mix.weight, layer.mix.bias), rtol=0, atol=0
    )


def test_ratio_1_is_the_convnn_and_the_mix() -> None:
    layer, x = HybridConvNN2d(4, 6, 3, k=5, branch_ratio=1.0), torch.randn(2, 4, 5, 7)
    assert layer.conv is None
    alone = convnn.ConvNN2d(4, 6, k=5, candidate_padding=1)
    alone.load_state_dict(layer.convnn.state_dict())
    torch.testing.assert_close(layer(x), layer.mix(alone(x)), rtol=0, atol=0)


def test_convnn_comes_first_in_the_mix() -> None:
    layer, x = HybridConvNN2d(4, 8, 3, k=5, branch_ratio=0.25), torch.randn(2, 4, 5, 7)
    nn.init.dirac_(layer.mix.weight)
    nn.init.zeros_(layer.mix.bias)
    y = layer(x)
    torch.testing.assert_close(y[:, :2], layer.convnn(x))
    torch.testing.assert_close(y[:, 2:], layer.conv(x))


def test_both_branches_see_every_input_channel() -> None:
    layer = HybridConvNN2d(4, 8, 3, k=5)
    nn.init.dirac_(layer.mix.weight)
    x = torch.randn(1, 4, 5, 7, requires_grad=True)
    for channels in (slice(0, 4), slice(4, 8)):
        (grad,) = torch.autograd.grad(layer(x)[:, channels].sum(), x)
        assert (grad.abs().sum((0, 2, 3)) > 0).all()


@pytest.mark.parametrize("groups", [2, 4])
def test_every_output_channel_sees_its_own_group(groups: int) -> None:
    layer = HybridConvNN2d(8, 8, 3, k=3, groups=groups, similarity="spatial", include_self=False)
    nn.init.dirac_(layer.mix.weight)
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    size = 8 // groups
    for channel in range(8):
        (grad,) = torch.autograd.grad(layer(x)[:, channel].sum(), x)
        seen = grad.abs().sum((0, 2, 3)).nonzero().flatten().tolist()
        first = channel // size * size
        assert seen == list(range(first, first + size))


def test_neighbors_are_the_convnn_branchs() -> None:
    x = torch.randn(2, 4, 5, 7)
    whole, grouped = HybridConvNN2d(4, 8, k=5), HybridConvNN2d(4, 8, k=5, groups=2)
    assert torch.equal(whole.neighbors(x).index, whole.convnn.neighbors(x).index)
    assert torch.equal(grouped.neighbors(x).index, grouped.convnn.neighbors(x[:, :2]).index)
    assert torch.equal(grouped.neighbors(x[0]).index, grouped.neighbors(x[:1]).index)


def test_the_convolution_is_initialised_as_torchs() -> None:
    torch.manual_seed(3)
    layer = HybridConvNN2d(4, 8, 3, branch_ratio=0.0)
    torch.manual_seed(3)
    conv, mix = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1)
    for ours, theirs in ((layer.conv, conv), (layer.mix, mix)):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_repr_is_the_call_that_made_the_layer(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    layer = HybridConvNN2d(4, 8, **options)
    torch.manual_seed(1)
    twin = eval(f"HybridConvNN2d({layer.extra_repr()})", dict(vars(convnn)))
    assert repr(twin) == repr(layer)
    x = torch.randn(1, 4, 8, 10)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_pickles_and_saved_states_answer_alike(options: dict[str, Any]) -> None:
    layer, x = HybridConvNN2d(4, 8, **options), torch.randn(1, 4, 8, 10)
    expected, before = layer(x), dict(vars(layer))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = HybridConvNN2d(4, 8, **options)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    assert vars(layer) == before


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_parameter_learns_in_every_precision(options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = HybridConvNN2d(4, 8, **options, dtype=dtype)
    x = torch.randn(2, 4, 8, 10).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    y.square().mean().backward()
    learned = dict(layer.named_parameters())
    assert not [
        name for name, p in learned.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(("dims", "memory_format"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_in_and_out(dims: int, memory_format: torch.memory_format) -> None:
    layer = KINDS[dims][0](3, 4, 3, k=3)
    x = torch.randn(2, 3, *(6, 5, 7)[:dims])
    y = layer(x.contiguous(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)


def test_on_the_meta_device_and_moved_from_it() -> None:
    layer = HybridConvNN2d(4, 8, k=4, device="meta", candidates=Random(9))
    assert layer(torch.empty(2, 4, 6, 6, device="meta")).shape == (2, 8, 6, 6)
    layer.to_empty(device="cpu").load_state_dict(HybridConvNN2d(4, 8, k=4).state_dict())
    assert layer(torch.randn(2, 4, 6, 6)).isfinite().all()


def test_random_candidates_are_redrawn_in_training_alone() -> None:
    layer, x = HybridConvNN2d(4, 8, k=3, candidates=Random(6)), torch.randn(2, 4, 6, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
