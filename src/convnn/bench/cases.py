"""The cases: each makes two steps for the same task, ours and the one that it replaces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..knn import knn_aggregate, knn_gather, knn_search
from ..nn import ConvNN2d
from ..types import Candidates, Grid, Random
from . import comparators
from .comparators import K
from .steps import Function, Maker, Step, features, step_of, training_step

SHAPES = [(16, 64, 32), (16, 128, 16), (8, 64, 56), (8, 128, 28), (8, 256, 14), (8, 512, 7)]
"""Batch, channels, side."""
LARGE = (1, 64, 256)
ATTENTION = (197, 1024, 4096)
"""Tokens, for 24 heads of width 64."""
LONG = {"3x16384x64": (16384, 3), "1x65536x64": (65536, 1)}
"""Tokens, heads."""
CLOUDS = ((50000, 64), (50000, 192))
"""Tokens, channels."""
SAMPLED: dict[str, Random | Grid] = {"random 32": Random(32), "grid 5": Grid(5)}
SMALL = ("16x128x16", "24x197x64", "clusters 1e3 apart")
"""The ends of the names in the small set: one shape of every question."""


class Case(NamedTuple):
    """A comparison of ``ours`` with ``theirs``, which ``against`` describes.

    ``both``: whether to time the backward pass too.
    """

    ours: Maker
    theirs: Maker
    against: str
    both: bool = True


def cases() -> dict[str, Case]:
    """Return every case by its name, ``question/shape``."""
    named: dict[str, Case] = {}
    for shape in SHAPES:
        at = "x".join(map(str, shape))
        plain, conv = "plain gather", "nn.Conv2d"
        named[f"all vs PyTorch/{at}"] = Case(
            convnn_layer(shape), comparators.without_library(convnn_layer(shape)), "without the native library"
        )
        named[f"all vs plain/{at}"] = Case(convnn_layer(shape), convnn_layer(shape, impl="dense"), plain)
        named[f"all vs floor/{at}"] = Case(convnn_layer(shape), comparators.bare_products(shape), "bare products")
        named[f"all vs conv/{at}"] = Case(convnn_layer(shape), comparators.convolution(shape), conv)
        for name, few in SAMPLED.items():
            ours = convnn_layer(shape, candidates=few)
            dense = convnn_layer(shape, candidates=few, impl="dense")
            named[f"{name} vs plain/{at}"] = Case(ours, dense, plain)
            named[f"{name} vs conv/{at}"] = Case(ours, comparators.convolution(shape), conv)
        named[f"recovered conv/{at}"] = Case(recovered_convolution(shape), comparators.convolution(shape), conv)
        named[f"shared search/{at}"] = Case(stage(shape, shared=True), stage(shape, shared=False), "4 searches")
    at = "x".join(map(str, LARGE))
    candidates: dict[str, Candidates] = {"all": "all", **SAMPLED}
    for name, among in candidates.items():
        ours = convnn_layer(LARGE, candidates=among)
        named[f"{name} vs conv/{at}"] = Case(ours, comparators.convolution(LARGE), "nn.Conv2d")
    return named | _aggregations() | _attentions() | _searches() | _training()


def _aggregations() -> dict[str, Case]:
    named = {}
    for shape in SHAPES[:3]:
        at = "x".join(map(str, shape))
        for name, depthwise in (("depthwise", True), ("sum", False)):
            theirs = comparators.gather_and_einsum(shape, depthwise=depthwise)
            ours = given_neighbors(shape, depthwise=depthwise)
            named[f"{name}, neighbours given/{at}"] = Case(ours, theirs, "gather + einsum")
    return named


def _attentions() -> dict[str, Case]:
    def ours(x: Tensor, key: Tensor, value: Tensor, *, k: int | None) -> Tensor:
        return knn_aggregate(x, key, value, k=k, similarity="dot", weighting="softmax")

    named, fused = {}, "F.scaled_dot_product_attention"
    for queries in ATTENTION:
        for k in (K, 16):
            knn = comparators.attention(functools.partial(ours, k=k), queries)
            named[f"attention, k = {k}, vs full/24x{queries}x64"] = Case(
                knn, comparators.standard_attention(queries), fused
            )
    for queries in ATTENTION[:2]:
        knn = comparators.attention(functools.partial(ours, k=K), queries)
        masked = comparators.masked_dense_attention(queries)
        named[f"attention vs masked dense/24x{queries}x64"] = Case(knn, masked, "masked dense")
        full = comparators.attention(functools.partial(ours, k=None), queries)
        named[f"recovered attention/24x{queries}x64"] = Case(full, comparators.standard_attention(queries), fused)
    # With so many tokens, nothing that holds N x N scores can be compared.
    for at, (queries, heads) in LONG.items():
        long = comparators.attention(functools.partial(ours, k=K), queries, heads)
        standard = comparators.standard_attention(queries, heads)
        named[f"attention, k = {K}, vs full/{at}"] = Case(long, standard, fused, both=heads > 1)
    return named


def _searches() -> dict[str, Case]:
    """The search alone, against other exact searches among Euclidean distances."""
    named = {}
    for shape in (SHAPES[1], SHAPES[0]):
        for name, search in comparators.other_searches().items():
            ours = _search_of(_tokens_of_map(shape), _euclidean_search)
            at = "x".join(map(str, shape))
            named[f"search vs {name}/{at}"] = Case(ours, _search_of(_tokens_of_map(shape), search), name, both=False)
    for count, channels in CLOUDS:
        cloud = functools.partial(torch.randn, 1, count, channels)
        for name, search in comparators.other_searches().items():
            if "cdist" not in name:  # which would hold all distances
                ours, theirs = _search_of(cloud, _euclidean_search), _search_of(cloud, search)
                named[f"search vs {name}/{count}x{channels}"] = Case(ours, theirs, name, both=False)
    for name, tokens in EUCLIDEAN_TOKENS.items():
        theirs = _search_of(tokens, comparators.search_around_one_center)
        ours = _search_of(tokens, _euclidean_search)
        named[f"exact search/{name}"] = Case(ours, theirs, "float32 products", both=False)
    return named


def _euclidean_search(tokens: Tensor) -> object:
    return knn_search(tokens, tokens, K, similarity="sqeuclidean")


def _tokens_of_map(shape: tuple[int, int, int]) -> Callable[[], Tensor]:
    return lambda: features(shape).flatten(2).transpose(1, 2).contiguous()


def _clusters(distance: float) -> Tensor:
    return (torch.randn(20, 1, 64) * distance + torch.randn(20, 150, 64)).flatten(0, 1).unsqueeze(0)


EUCLIDEAN_TOKENS: dict[str, Callable[[], Tensor]] = {
    "random tokens": lambda: torch.randn(1, 3000, 64),
    "tokens far from zero": lambda: torch.randn(1, 3000, 64) + 1e4,
    "coordinates in metres": lambda: (
        torch.rand(1, 4000, 3) * torch.tensor([100, 100, 30]) + torch.tensor([5e5, 5.4e6, 200])
    ),
    "clusters 1e3 apart": lambda: _clusters(1e3),
    "clusters 1e7 apart": lambda: _clusters(1e7),
    "tokens that occur 6 times": lambda: torch.randn(1, 500, 64).repeat(1, 6, 1) + 1e3,
    "lengths of 12 magnitudes": lambda: torch.randn(1, 3000, 64) * torch.logspace(-6, 6, 3000).unsqueeze(1),
    "4,096 channels": lambda: torch.randn(1, 1000, 4096),
}
"""Tokens ``(1, N, C)``; float32 products cannot order most of them, so they show the cost of exactness."""


def _search_of(tokens: Callable[[], Tensor], search: Callable[[Tensor], object]) -> Maker:
    def make(_: bool) -> Step:
        x = tokens()
        return lambda: search(x)

    return make


def _training() -> dict[str, Case]:
    """A whole network with hybrid layers: inference, and a training step."""
    if find_spec("timm") is None:
        return {}

    def step(name: str, memory_format: torch.memory_format) -> Maker:
        def make(grad: bool) -> Step:
            from ..models import create_model  # imports timm, which every process of every case would wait for

            model = create_model(name, num_classes=1000).to(memory_format=memory_format)
            images = torch.randn(8, 3, 224, 224).contiguous(memory_format=memory_format)
            return training_step(model.train(), images, 1000) if grad else step_of(model.eval(), images, grad=False)

        return make

    named, plain, last = {}, torch.contiguous_format, torch.channels_last
    for at, hybrid, layout in (
        ("random 32/8x3x224", "resnet50_hybrid_random32", plain),
        ("random 32/8x3x224, channels-last", "resnet50_hybrid_random32", last),
        ("all/8x3x224", "resnet50_hybrid_all", plain),
    ):
        named[f"ResNet-50 hybrid {at}"] = Case(step(hybrid, layout), step("resnet50", layout), "timm's resnet50")
    return named


def convnn_layer(shape: tuple[int, int, int], **options: Any) -> Maker:
    """ConvNN2d(C, C, 9) with options."""
    return lambda grad: step_of(ConvNN2d(shape[1], shape[1], K, **options), features(shape), grad)


def recovered_convolution(shape: tuple[int, int, int]) -> Maker:
    """The spatial ConvNN of a convolution."""

    def make(grad: bool) -> Step:
        conv = nn.Conv2d(shape[1], shape[1], 3, padding=1)
        return step_of(ConvNN2d.from_conv(conv), features(shape, channels_last=False), grad)

    return make


class _Stage(nn.Module):
    """Four ConvNN layers on maps of one size, with one search for all or one for each."""

    def __init__(self, channels: int, *, shared: bool) -> None:
        super().__init__()
        self.first = ConvNN2d(channels, channels, K)
        self.others = nn.ModuleList([ConvNN2d(channels, channels, K) for _ in range(3)])
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        neighbors = self.first.neighbors(x) if self.shared else None
        x = x + self.first(x, neighbors)
        for block in self.others:
            x = x + block(x, neighbors)
        return x


def stage(shape: tuple[int, int, int], *, shared: bool) -> Maker:
    """A stage of ConvNN layers."""
    return lambda grad: step_of(_Stage(shape[1], shared=shared), features(shape), grad)


def given_neighbors(shape: tuple[int, int, int], *, depthwise: bool) -> Maker:
    """The aggregation alone, of given neighbours: a depthwise weight per slot, or a sum weighted by softmax."""

    def make(grad: bool) -> Step:
        tokens = features(shape).flatten(2).transpose(1, 2).contiguous()
        neighbors = knn_search(tokens, tokens, K)

        def run(x: Tensor, weight: Tensor) -> Tensor:
            if depthwise:
                return knn_gather(x, neighbors, weight, groups=shape[1])
            return knn_gather(x, neighbors, weighting="softmax") * weight.sum()

        return step_of(Function(run, torch.randn(shape[1], 1, K)), tokens, grad)

    return make
