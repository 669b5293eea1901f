"""ConvNN1d, 2d and 3d as layers: sizes, formats, initialisation, repr, state, neighbours, precision."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convnn
from convnn import Blend, ConvNN1d, ConvNN2d, ConvNN3d, Grid, Random, Window, knn_gather
from convnn.testing import assert_close, layer_with_gradients

KINDS: dict[int, Any] = {1: (ConvNN1d, nn.Conv1d), 2: (ConvNN2d, nn.Conv2d), 3: (ConvNN3d, nn.Conv3d)}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 5, "stride": 2, "candidate_padding": 1, "bias": False},
    {"k": 4, "stride": (2, 1), "candidate_padding": (0, 2), "groups": 2},
    {"k": 4, "similarity": "euclidean", "weighting": "softmax", "temperature": 0.5},
    {"k": 4, "similarity": "dot", "scale": 0.25, "weighting": "identity", "include_self": False},
    {"k": 9, "similarity": "spatial", "candidate_padding": 1},
    {"k": 9, "similarity": "spatial", "include_self": True, "candidate_padding": 1, "padding_mode": "reflect"},
    {"k": 4, "similarity": Blend(0.25, "sqeuclidean"), "candidates": Grid(3, 1)},
    {"k": 4, "candidates": Random(12, seed=3), "aggregation": "depthwise"},
    {"k": 4, "candidates": Window((3, 5), dilation=1, border="shift"), "aggregation": "depthwise_separable"},
    {"k": 4, "projection": True, "weighting": "softmax", "value_coordinates": True},
    {"k": 4, "unshuffle": 2, "shuffle": 2, "candidate_padding": 1},
    {"k": None, "aggregation": "sum", "weighting": "softmax", "similarity": "dot", "impl": "dense"},
    {"k": 4, "candidate_padding": 1, "query_margin": 0, "padding_mode": "circular"},
]


def written(layer: nn.Module) -> str:
    return f"{type(layer).__name__}({layer.extra_repr()})"


def rebuilt(layer: nn.Module) -> nn.Module:
    return eval(written(layer), {**vars(convnn), "tensor": torch.tensor})


def plain_options(layer: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if not name.startswith("_") and name != "eval_seed"}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 2])
def test_the_output_is_as_large_as_a_padded_convolutions(dims: int, stride: int, padding: int) -> None:
    kind, conv_kind = KINDS[dims]
    layer = kind(3, 4, k=3, stride=stride, candidate_padding=padding)
    conv = conv_kind(3, 4, 5, stride=stride, padding=2)
    for grid in [(7, 6, 5), (4, 5, 3), (3, 9, 4)]:  # another size at every call
        x = torch.randn(2, 3, *grid[:dims])
        y = layer(x)
        assert y.shape == conv(x).shape
        assert y.shape[2:] == tuple(-(-size // stride) for size in grid[:dims])
        assert layer.neighbors(x).index.shape == (2, y[0, 0].numel(), 3)


def test_a_size_gives_the_same_before_and_after_another() -> None:
    layer, x = ConvNN2d(3, 4, k=3, candidate_padding=1), torch.randn(1, 3, 5, 6)
    first = layer(x)
    layer(torch.randn(1, 3, 6, 5))
    torch.testing.assert_close(layer(x), first, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "candidate_padding": 1}, {"unshuffle": 2, "shuffle": 2}, {"shuffle": 2}]
)
@pytest.mark.parametrize(("dims", "memory_format"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last_in_and_out(dims: int, memory_format: torch.memory_format, options: dict[str, Any]) -> None:
    layer = KINDS[dims][0](3, 4, k=3, dtype=torch.float64, **options)
    x = torch.randn(2, 3, *(6, 4, 8)[:dims], dtype=torch.float64)
    expected = layer(x)
    assert expected.is_contiguous()
    y = layer(x.contiguous(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_sample_without_batch(dims: int) -> None:
    layer = KINDS[dims][0](3, 4, k=3, stride=2, candidate_padding=1)
    x = torch.randn(3, *(6, 4, 8)[:dims])
    torch.testing.assert_close(layer(x), layer(x.unsqueeze(0)).squeeze(0), rtol=0, atol=0)
    assert torch.equal(layer.neighbors(x).index, layer.neighbors(x.unsqueeze(0)).index)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_repr_is_the_call_that_made_the_layer(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    layer = ConvNN2d(4, 4, **options).eval()
    torch.manual_seed(1)
    twin = rebuilt(layer).eval()
    assert written(twin) == written(layer)
    assert plain_options(twin) == plain_options(layer)
    twin.eval_seed = layer.eval_seed  # of its own in every layer
    x = torch.randn(2, 4, 6, 8)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)


def test_the_repr_of_given_positions_makes_the_layer() -> None:
    layer = ConvNN2d(4, 4, k=3, candidates=torch.tensor([1, 5, 7]))
    assert torch.equal(rebuilt(layer).candidates, layer.candidates)


def test_the_repr_leaves_the_defaults_out() -> None:
    assert repr(ConvNN2d(3, 8)) == "ConvNN2d(3, 8, k=9)"
    assert repr(ConvNN1d(3, 8, 4, similarity="dot", stride=2)) == "ConvNN1d(3, 8, k=4, stride=2, similarity='dot')"


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_same_seed_draws_the_convolutions_numbers(dims: int, groups: int) -> None:
    kind, conv_kind = KINDS[dims]
    torch.manual_seed(5)
    conv = conv_kind(4, 6, 3, groups=groups)
    torch.manual_seed(5)
    layer = kind(4, 6, k=3**dims, groups=groups)
    assert torch.equal(layer.weight, conv.weight.flatten(2))
    assert torch.equal(layer.bias, conv.bias)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert torch.equal(layer.weight, conv.weight.flatten(2))


def test_initial_weights_are_uniform_within_the_convolutions_bounds() -> None:
    layer, bound = ConvNN2d(64, 64, k=9), (64 * 9) ** -0.5
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert layer.weight.mean().item() == pytest.approx(0, abs=bound / 50)


@pytest.mark.parametrize("options", OPTIONS)
def test_forward_writes_nothing_to_the_layer(options: dict[str, Any]) -> None:
    layer = ConvNN2d(4, 4, **options)
    before, state = dict(vars(layer)), copy.deepcopy(layer.state_dict())
    buffers = dict(layer._buffers)
    for size in (6, 8):
        layer(torch.randn(1, 4, size, 6, requires_grad=True)).sum().backward()
        layer.neighbors(torch.randn(1, 4, size, 6))
    assert vars(layer) == before
    assert layer._buffers == buffers
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())


def by_hand(layer: ConvNN2d, x: Tensor) -> Tensor:
    """What ``neighbors`` found, gathered from the padded map: a layer without projections, patches or coordinates."""
    p = layer.candidate_padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = nn.functional.pad(x, (p[1], p[1], p[0], p[0]), mode=mode)
    y = knn_gather(
        padded.flatten(2).transpose(1, 2), layer.neighbors(x), layer.weight, layer.bias, groups=layer.groups,
        weighting=layer.weighting, temperature=layer.temperature,
    )  # fmt: skip
    return y.transpose(1, 2).reshape(layer(x).shape)


@pytest.mark.parametrize("options", [o for o in OPTIONS if not o.keys() & {"projection", "unshuffle", "aggregation"}])
def test_forward_gathers_what_neighbors_finds(options: dict[str, Any]) -> None:
    layer = ConvNN2d(4, 4, **options).double().eval()
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------ copies and precision
@pytest.mark.parametrize("options", OPTIONS)
def test_copies_pickles_and_saved_states_answer_alike(options: dict[str, Any]) -> None:
    layer = ConvNN2d(4, 4, **options).eval()
    x = torch.randn(1, 4, 6, 8)
    expected = layer(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = ConvNN2d(4, 4, **options).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
        assert repr(twin) == repr(layer)


def test_a_layer_with_a_generator_can_be_copied() -> None:
    layer = ConvNN2d(4, 4, k=3, candidates=Random(8, generator=torch.Generator().manual_seed(3)))
    x = torch.randn(1, 4, 6, 6)
    twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    expected = layer(x)
    for twin in twins:
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)


def test_the_state_dict_has_a_convolutions_names() -> None:
    assert set(ConvNN2d(4, 4, candidates=torch.arange(9)).state_dict()) == {"weight", "bias"}
    assert set(ConvNN2d(4, 4, bias=False).state_dict()) == {"weight"}


@pytest.mark.parametrize("options", OPTIONS)
def test_on_the_meta_device(options: dict[str, Any]) -> None:
    layer = ConvNN2d(4, 4, **options, device="meta")
    x = torch.empty(2, 4, 6, 8, device="meta")
    y = layer(x)
    assert y.is_meta
    assert y.shape == ConvNN2d(4, 4, **options)(torch.randn(2, 4, 6, 8)).shape
    assert layer.neighbors(x).index.is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("padding_mode") != "circular"])  # it repeats tokens
def test_lower_precision_is_close_to_double(options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = ConvNN2d(4, 4, **options, dtype=dtype).eval()
    exact = ConvNN2d(4, 4, **options, dtype=torch.float64).eval()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, 6, 8).to(dtype)
    results = layer_with_gradients(layer, x)
    assert all(part.dtype == dtype and part.isfinite().all() for part in results.values())
    if layer.projection:  # it rounds before the search, which may then choose others
        return
    assert torch.equal(layer.neighbors(x).index, exact.neighbors(x.double()).index)
    assert_close(results, layer_with_gradients(exact, x.double()), limit=64 * torch.finfo(dtype).eps)


def test_a_layer_can_be_moved_to_another_precision() -> None:
    layer = ConvNN2d(4, 4, k=3, candidates=torch.tensor([1, 5, 7])).double()
    assert layer.candidates.dtype == torch.int64
    assert layer(torch.randn(1, 4, 3, 4, dtype=torch.float64)).dtype == torch.float64
