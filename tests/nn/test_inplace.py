"""A layer's output is a tensor of its own: in-place operations behind it and in front of it compute the same."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from convnn import (
    Blend,
    ConvNN1d,
    ConvNN2d,
    ConvNN3d,
    ConvNNAttention,
    ConvNNMultiheadAttention,
    HybridAttention,
    HybridConvNN2d,
    Random,
    convert,
    knn_aggregate,
    knn_gather,
    knn_search,
)
from convnn.testing import with_gradients

from .. import layers

# Those that maps of every number of axes take.
CANDIDATES = {name: given for name, given in layers.CANDIDATES.items() if name != "dilated window"}
FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def _add(y: Tensor) -> Tensor:
    y += 0.5
    return y


# Each in place, and what it computes.
IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (lambda y: F.relu(y, inplace=True), F.relu),
    "+=": (_add, lambda y: y + 0.5),
    "mul_": (lambda y: y.mul_(1.7), lambda y: y * 1.7),
    "dropout": (lambda y: F.dropout(y, 0.3, inplace=True), lambda y: F.dropout(y, 0.3)),
    "sigmoid_ of a part": (
        lambda y: torch.cat([y[..., :1].sigmoid_(), y[..., 1:]], -1),
        lambda y: torch.cat([y[..., :1].sigmoid(), y[..., 1:]], -1),
    ),
}


def run(
    call: Callable[[Tensor], Tensor], x: Tensor, front: Callable[..., Tensor], behind: Callable[..., Tensor]
) -> Any:
    """Return the outputs and the input's gradient of ``behind(call(front(x)))``."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    y = behind(call(front(x * 1.5)))
    return with_gradients(y, {"input": x})


# Each case takes the next one: all meet all kinds of layers.
_turn = itertools.cycle(IN_PLACE.values())


def assert_in_place_works(call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    in_place, plain = next(_turn)
    same = run(call, x, plain, plain)
    torch.testing.assert_close(run(call, x, in_place, in_place), same)


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Candidates, aggregations and weightings of the feature search with each other, and what else there is."""
    for name, aggregation, weighting in itertools.product(
        CANDIDATES, ("standard", "depthwise", "depthwise_separable", "sum"), ("ones", "softmax")
    ):
        options = {"candidates": CANDIDATES[name], "aggregation": aggregation, "weighting": weighting}
        yield f"{name}-{aggregation}-{weighting}", {"k": 3, "candidate_padding": 1, **options}
    every = {"k": None, "similarity": "dot", "weighting": "softmax", "aggregation": "sum"}
    yield "attention", every
    yield "projected attention", {**every, "projection": True}
    yield "spatial", {"k": 9, "similarity": "spatial", "candidate_padding": 1}
    yield "spatial-sum", {"k": 5, "similarity": "spatial", "candidate_padding": 1, "aggregation": "sum"}
    yield "blend", {"k": 3, "similarity": Blend(0.5)}
    yield "k=1", {"k": 1, "aggregation": "sum", "bias": False}
    yield "k=1 random", {"k": 1, "candidates": Random(5), "bias": False}
    yield "patches", {"k": 3, "candidates": Random(3), "unshuffle": 2, "shuffle": 2}
    yield "stride", {"k": 3, "candidates": Random(5), "stride": 2, "bias": False}
    yield "dense", {"k": 3, "impl": "dense"}


SETTINGS = dict(settings())


@pytest.mark.parametrize("name", SETTINGS)
def test_convnn2d(name: str) -> None:
    layer = ConvNN2d(4, 4, **SETTINGS[name])
    for memory_format, training, batched in itertools.product(FORMATS.values(), (True, False), (True, False)):
        x = torch.randn(2, 4, 4, 6).contiguous(memory_format=memory_format)
        assert_in_place_works(layer.train(training), x if batched else x[0])


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_the_other_layers_of_maps(candidates: str) -> None:
    options: dict[str, Any] = {"k": 3, "candidates": CANDIDATES[candidates], "candidate_padding": 1}
    for layer, shape in (
        (ConvNN1d(4, 4, **options), (2, 4, 8)),
        (ConvNN1d(1, 1, aggregation="sum", **options), (2, 1, 8)),
        (ConvNN3d(4, 4, **options), (2, 4, 2, 3, 4)),
        (ConvNN3d(4, 4, aggregation="sum", **options), (2, 4, 2, 3, 4)),
        (HybridConvNN2d(4, 4, 3, **options), (2, 4, 4, 6)),
        (HybridConvNN2d(4, 4, 3, branch_ratio=1, **options), (2, 4, 4, 6)),
    ):
        for _ in IN_PLACE:
            assert_in_place_works(layer, torch.randn(shape))


@pytest.mark.parametrize("aggregation", ["standard", "depthwise", "sum"])
def test_attention_layers(aggregation: str) -> None:
    options: dict[str, Any] = {"k": None if aggregation == "sum" else 3, "aggregation": aggregation}
    multihead = ConvNNMultiheadAttention(8, 2, batch_first=True, **options)
    layers = (ConvNNAttention(8, 1, **options), ConvNNAttention(8, 2, **options), HybridAttention(8, 2, **options))
    for layer in (*layers, lambda x: multihead(x, x, x, need_weights=False)[0]):
        for _ in IN_PLACE:
            assert_in_place_works(layer, torch.randn(2, 6, 8))


@pytest.mark.parametrize("impl", ["auto", "dense", "tiled"])  # auto: native where it can be
def test_functionals(impl: str) -> None:
    weights = {None: 1, torch.randn(4, 2, 3): 2, torch.randn(4, 1, 3): 4}
    for (weight, groups), weighting, candidates in itertools.product(
        weights.items(), ("ones", "identity", "softmax"), CANDIDATES.values()
    ):
        search: dict[str, Any] = {"k": 3, "similarity": "dot", "candidates": candidates, "grid": (3, 4)}
        gather: dict[str, Any] = {"weight": weight, "groups": groups, "weighting": weighting, "impl": impl}
        x = torch.randn(2, 12, 4)
        assert_in_place_works(lambda y: knn_aggregate(y, y, y, **search, **gather), x)  # noqa: B023
        assert_in_place_works(lambda y: knn_gather(y, knn_search(y, y, **search), **gather), x)  # noqa: B023


def test_what_the_native_attention_keeps_for_its_backward_pass_is_not_handed_out() -> None:
    options: dict[str, Any] = {"k": None, "similarity": "dot", "weighting": "softmax"}
    for _ in IN_PLACE:
        assert_in_place_works(lambda x: knn_aggregate(x, x, x, **options), torch.randn(2, 6, 4))
        for shape in ((2, 4, 1, 1), (1, 1, 4, 4)):  # both memory formats at once
            layer = ConvNN2d(shape[1], shape[1], aggregation="sum", **options)
            assert_in_place_works(layer, torch.randn(shape))


def test_in_inference_mode_without_gradients_and_under_autocast() -> None:
    layer = ConvNN2d(4, 4, 3, candidates=Random(5)).eval()
    for memory_format in FORMATS.values():
        x = torch.randn(2, 4, 4, 6).contiguous(memory_format=memory_format)
        before = x.clone()
        for context in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
            with context:
                expected = F.relu(layer(x))
                assert torch.equal(F.relu(layer(x), inplace=True), expected)
        assert torch.equal(x, before)


def test_what_is_modified_behind_the_layer_is_noticed() -> None:
    """As in torch's layers: the backward pass is right, or refuses a saved tensor that was modified since."""
    for name, options in SETTINGS.items():
        layer = ConvNN2d(4, 4, **options).eval()
        x = torch.randn(2, 4, 4, 6, requires_grad=True)
        expected = with_gradients(layer(x * 1), {"input": x})
        modified = x * 1
        y = layer(modified)
        modified.mul_(3)
        try:
            found = with_gradients(y, {"input": x})
        except RuntimeError as error:
            refused = str(error)
        else:
            refused = None
            torch.testing.assert_close(found, expected, msg=name)
        assert refused is None or "modified by an inplace operation" in refused, name


@pytest.mark.parametrize("similarity", ["cosine", "euclidean", "spatial"])
def test_neighbours_are_tensors_of_their_own(similarity: str) -> None:
    for candidates, include_self in itertools.product(CANDIDATES.values(), (True, None)):
        layer = ConvNN2d(
            4, 4, 3, similarity=similarity, candidates=candidates, include_self=include_self, candidate_padding=1
        )
        found = layer.neighbors(torch.randn(2, 4, 4, 4))
        before = found.index[1].clone()
        found.index[0] += 1
        found.similarity.mul_(2)
        assert torch.equal(found.index[1], before)


def test_gradients_share_no_memory() -> None:
    """Neither with each other, nor with the gradient that came in, nor with a parameter."""
    for name, options in SETTINGS.items():
        layer = ConvNN2d(4, 4, **options)
        x = torch.randn(2, 4, 4, 6, requires_grad=True)
        y = layer(x)
        incoming = torch.randn_like(y)
        gradients = torch.autograd.grad(y, [x, *layer.parameters()], incoming, allow_unused=True)
        tensors = [x, incoming, *layer.parameters(), *(gradient for gradient in gradients if gradient is not None)]
        places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
        assert len(set(places)) == len(places), name
        assert all(0 not in tensor.stride() for tensor in tensors), name


def _networks() -> Iterator[nn.Module]:
    models: Any = torchvision.models
    yield models.vgg.make_layers([8, "M", 16, 16])
    yield nn.Sequential(nn.Conv2d(3, 8, 3), models.squeezenet.Fire(8, 4, 8, 8), nn.Dropout(0.5, inplace=True))


@pytest.mark.parametrize("candidates", ["all", "random", "grid"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_converted_networks_with_activations_in_place(candidates: str, memory_format: str) -> None:
    torch.manual_seed(0)
    for net in _networks():
        net = convert(net, "convnn", k=3, candidates=CANDIDATES[candidates]).to(memory_format=FORMATS[memory_format])
        plain = copy.deepcopy(net)
        inner = [module for module in plain.modules() if getattr(module, "inplace", False)]
        assert inner
        for module in inner:
            module.inplace = False
        x = torch.randn(2, 3, 16, 16).contiguous(memory_format=FORMATS[memory_format])
        found, expected = (run(model, x, lambda y: y, lambda y: y) for model in (net, plain))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
