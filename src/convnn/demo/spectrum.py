"""The demo's eight experiments, from convolution to attention: two small networks with replaced layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .._convert import convert
from ..models import LAYERS, SmallConvNet, small_transformer, swap_layers
from ..train.module import seed_epoch

Family = Literal["cnn", "transformer"]


@dataclass(frozen=True)
class Experiment:
    """An experiment: its key in the results, the family of its network, its layer's name in ``LAYERS``, its words."""

    key: str
    family: Family
    layer: str
    title: str
    text: str


EXPERIMENTS = (
    Experiment("conv", "cnn", "conv", "Convolution", "the 3 × 3 pixels around"),
    Experiment("spatial", "cnn", "spatial", "Spatial ConvNN", "the 9 nearest positions: convolution again"),
    Experiment("blend", "cnn", "blend", "Blend λ = 0.5", "9, half by position, half by features"),
    Experiment("convnn", "cnn", "convnn", "Feature ConvNN", "the 9 most alike, wherever they are"),
    Experiment("hybrid", "cnn", "hybrid", "Hybrid λ = 0.5", "half convolution, half ConvNN (shown)"),
    Experiment("attention", "transformer", "attention", "Attention", "every patch, by its weight"),
    Experiment("knn", "transformer", "knn", "k-NN attention", "the 9 patches of largest weight"),
    Experiment("convnn_attention", "transformer", "convnn", "ConvNN attention", "9 patches, one more weight per slot"),
)
K = 9


@dataclass(frozen=True)
class TrainingPlan:
    """Epochs and learning rates of each family (equal for a layer and its replacement), and the most images a split."""

    epochs: dict[Family, int]
    lr: dict[Family, float]
    batch_size: int = 32
    images: int = 2000


FULL = TrainingPlan({"cnn": 6, "transformer": 8}, {"cnn": 1e-2, "transformer": 4e-3})
QUICK = TrainingPlan({"cnn": 2, "transformer": 2}, {"cnn": 1e-2, "transformer": 4e-3}, batch_size=16, images=240)


def base_network(family: Family) -> nn.Module:
    """Build the network of a family for digits ``(B, 1, 8, 8)``, with the original layers."""
    if family == "cnn":
        return SmallConvNet(in_channels=1, num_classes=10, width=32, depth=2)
    return small_transformer(in_channels=1, num_classes=10, width=48, depth=2, image_size=8, patch=2)


def build(experiment: Experiment, *, seed: int) -> nn.Module:
    """Build the network of an experiment; equal seeds give equal weights to equal layers.

    All transformers start from the attention's weights.

    >>> sum(p.numel() for p in build(EXPERIMENTS[0], seed=0).parameters())
    19242
    """
    network = _base(experiment.family, seed=seed)
    if LAYERS[experiment.layer].to is None:
        return network
    if isinstance(network, SmallConvNet):  # the stem stays: a cosine cannot compare single grey values
        body = swap_layers(network.body, experiment.layer, k=K)
        network.body = body if isinstance(body, nn.Sequential) else nn.Sequential(body)
        return network
    return swap_layers(network, experiment.layer, k=K, init="from_original")


@dataclass(frozen=True)
class Identity:
    """Two networks that must compute the same function: the largest difference of their outputs, and its bound."""

    name: str
    text: str
    difference: float
    bound: float

    @property
    def holds(self) -> bool:
        """True if the difference is within its bound."""
        return self.difference <= self.bound


def identities(images: Tensor, *, seed: int) -> list[Identity]:
    """Compare, before training, each recovered layer with the layer that it must equal, on images ``(B, 1, 8, 8)``.

    The recovered layers run twice: by the native kernel, and by search and gather
    (``impl="dense"``), which is the comparison that could fail.
    """
    compared: list[Identity] = []
    tokens = 16
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        precision = str(dtype).removeprefix("torch.")
        for impl, path in (("auto", "by the native kernel"), ("dense", "by neighbour search")):
            cnn = _base("cnn", seed=seed)
            spatial = convert(cnn, "convnn", similarity="spatial", init="from_original", impl=impl)
            difference = _difference(cnn, spatial, images.to(dtype))
            compared.append(Identity("Spatial ConvNN = convolution", f"{precision}, {path}", difference, bound))
            former = _base("transformer", seed=seed)
            everyone = convert(former, "convnn", k=tokens, aggregation="sum", init="from_original", impl=impl)
            difference = _difference(former, everyone, images.to(dtype))
            name = f"k-NN attention, k = N = {tokens} = attention"
            compared.append(Identity(name, f"{precision}, {path}", difference, bound))
    return sorted(compared, key=lambda identity: identity.name.lower(), reverse=True)


def _base(family: Family, *, seed: int) -> nn.Module:
    seed_epoch(seed, -1)
    return base_network(family)


def _difference(first: nn.Module, second: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        one = first.to(images.dtype).eval()(images)
        other = second.to(images.dtype).eval()(images)
    return float((one - other).abs().max())
