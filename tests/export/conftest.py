"""Small models to export, and each exported once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convnn
from convnn.export import export
from convnn.models import create_model, parse_candidates

# A ResNet of four basic blocks, two of its layers swapped: what takes time is tracing, a layer at a time.
RESNET = {"num_classes": 10, "channels": [32, 32, 48, 64], "stem_type": ""}
SWAPPED = ("layer1.0.conv1", "layer2.0.conv2")
VIT = {"num_classes": 10, "stem": "cifar", "embed_dim": 48, "depth": 1, "num_heads": 4}
SMALL = {"num_classes": 10, "layer": "hybrid", "candidates": "random:24", "image_size": 16}
MODELS: dict[str, tuple[str, dict[str, object], int]] = {
    "small, random": ("small_cnn", SMALL, 16),
    "resnet, all": ("resnet10t", {"candidates": "all"}, 32),
    "resnet, random": ("resnet10t", {"candidates": "random:24"}, 64),
    "resnet, grid": ("resnet10t", {"candidates": "grid:4"}, 64),
    "vit, k-NN": ("vit_tiny", {**VIT, "layer": "knn"}, 32),
    "vit, ConvNN": ("vit_tiny", {**VIT, "layer": "convnn", "candidates": "random:20"}, 32),
    "vit, hybrid": ("vit_tiny", {**VIT, "layer": "hybrid"}, 32),
}


def trained(model: nn.Module, size: int) -> nn.Module:
    """Give a model statistics, and scales that are not 0: a residual block of timm's starts as the identity."""
    torch.manual_seed(2)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
    model.train()
    with torch.no_grad():
        model(torch.randn(16, 3, size, size))
    return model.eval()


def make(name: str) -> nn.Module:
    torch.manual_seed(1)
    kind, options, size = MODELS[name]
    if kind != "resnet10t":
        return trained(create_model(kind, **options), size)
    model = create_model(kind, **RESNET)
    swapped = {"candidates": parse_candidates(options["candidates"]), "k": 9}
    return trained(convnn.convert(model, "hybrid", where=lambda layer, _: layer in SWAPPED, **swapped), size)


def exact_logits(model: nn.Module, images: Tensor) -> Tensor:
    """What a model gives in double precision, equal similarities taken lowest index first, as ONNX takes them.

    After ReLUs many similarities are exactly 0: tokens without a common channel, and padding.
    """
    exact = copy.deepcopy(model).double()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.no_grad():
            return exact(images.double())
    finally:
        torch.use_deterministic_algorithms(False)


def steady_images(model: nn.Module, count: int, size: int) -> Tensor:
    """Random images in which rounding exchanges no neighbours, so that outputs can be compared to the last digits."""
    generator = torch.Generator().manual_seed(3)
    found: list[Tensor] = []
    for _ in range(20 * count):
        image = torch.randn(1, 3, size, size, generator=generator)
        noise = torch.randn(24, 3, size, size, generator=generator, dtype=torch.float64)
        logits = exact_logits(model, torch.cat([image.double(), image.double() * (1 + 2e-5 * noise)]))
        if float((logits[1:] - logits[:1]).abs().max()) < 2e-4 * float(logits.abs().max()):
            found.append(image)
        if len(found) == count:
            return torch.cat(found)
    raise AssertionError("no such images")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[nn.Module, Path]]:
    """Return a model and the file that it was exported to, by name and format."""
    made: dict[tuple[str, str], tuple[nn.Module, Path]] = {}

    def get(name: str, kind: str) -> tuple[nn.Module, Path]:
        if (name, kind) not in made:
            model = make(name)
            path = tmp_path_factory.mktemp("exported") / ("model.onnx" if kind == "onnx" else "model.pt2")
            export(model, path, format=kind, image_size=MODELS[name][2])
            made[name, kind] = (model, path)
        return made[name, kind]

    return get
