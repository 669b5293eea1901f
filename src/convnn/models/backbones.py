"""The networks that we name: timm's models, their stems, and the published networks made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from . import surgery

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

STEMS = ("imagenet", "cifar")
CONVOLUTIONAL = ("conv", "spatial", "blend", "convnn", "hybrid")
ATTENTIVE = ("attention", "knn", "convnn", "hybrid")


class InputConfig(NamedTuple):
    """The images that a model takes: the side in pixels, and the mean and deviation that they are normalised by."""

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class Backbone:
    """A named network.

    Attributes:
        timm: the name of timm's model that it is built from.
        layers: the values of ``layer``.
        arguments: of ``timm.create_model``, beyond timm's own.
        cifar: the stem for 32 x 32 images: arguments of ``timm.create_model``, or a function that changes the
            model and returns the name of the new stem, which is not replaced; None without such a stem.
        prepare: changes the model before its layers are replaced; takes the model and ``layer``.
        finish: changes the model after its layers are replaced.
        options: of the replaced layers, where they differ from ``convert``'s defaults; by ``layer``.
        num_classes: the default.
        takes: the images, where they are not those of timm's model.
        pretrained: whether the weights of timm's model fit it.
    """

    timm: str
    layers: tuple[str, ...] = CONVOLUTIONAL
    arguments: dict[str, Any] = field(default_factory=dict)
    cifar: dict[str, Any] | Callable[[nn.Module], str] | None = None
    prepare: Callable[[nn.Module, str | None], None] | None = None
    finish: Callable[[nn.Module], None] | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_classes: int | None = None
    takes: InputConfig | None = None
    pretrained: bool = True


def _two_by_two(model: nn.Module) -> str:
    return surgery.small_stem(model, kernel=2, stride=2)


def _prepare_vgg(model: nn.Module, layer: str | None) -> None:
    surgery.linear_pre_logits(model)
    surgery.torch_initialization(model)


def _prepare_vit(model: nn.Module, layer: str | None) -> None:
    surgery.attention_without_biases(model)
    surgery.fixed_positions(model)
    surgery.torch_initialization(model)


def _prepare_resnet(model: nn.Module, layer: str | None) -> None:
    if layer in (None, "conv"):
        surgery.all_biases(model)


_PUBLISHED_VIT: dict[str, Any] = {
    "qkv_bias": False, "final_norm": False, "norm_layer": nn.LayerNorm, "embed_norm_layer": nn.LayerNorm,
    "proj_drop_rate": 0.1, "attn_drop_rate": 0.1,
}  # fmt: skip

# A depthwise 7x7 has a padding of three; for a search that many zero tokens only compete with those of the map.
_DEPTHWISE = {layer: {"candidate_padding": 1} for layer in ("blend", "convnn", "hybrid")}

BACKBONES: dict[str, Backbone] = {
    **{name: Backbone(name, cifar={}) for name in ("vgg11", "vgg13", "vgg16", "vgg19")},
    **{name: Backbone(name, cifar=surgery.small_stem) for name in ("resnet18", "resnet34", "resnet50", "densenet121")},
    "convnext_tiny": Backbone("convnext_tiny", cifar=_two_by_two, options=_DEPTHWISE),
    **{
        f"vit_{size}": Backbone(f"vit_{size}_patch16_224", layers=ATTENTIVE, cifar={"patch_size": 4})
        for size in ("tiny", "small", "base")
    },
    "published_resnet50": Backbone(
        "resnet50",
        prepare=_prepare_resnet,
        options={"convnn": {"bias": False}, "hybrid": {"bias": True, "convnn_bias": False}},
        num_classes=1000,
    ),
    "published_vgg11": Backbone(
        "vgg11_bn",
        # timm's hidden layers are replaced; made in full they would cost 400 MB first.
        arguments={"mlp_ratio": 1 / 4096, "drop_rate": 0.5},
        prepare=_prepare_vgg,
        options={"hybrid": {"candidate_padding": 1}},  # for every kernel of the other branch
        num_classes=10,
        takes=InputConfig(32, CIFAR_MEAN, CIFAR_STD),
        pretrained=False,
    ),
    "published_vit_tiny": Backbone(
        "vit_tiny_patch16_224",
        layers=ATTENTIVE,
        arguments={"num_heads": 1, **_PUBLISHED_VIT},
        prepare=_prepare_vit,
        finish=surgery.dropout_after_aggregation,
        num_classes=10,
        takes=InputConfig(224, CIFAR_MEAN, CIFAR_STD),
        pretrained=False,
    ),
    "published_vit_base": Backbone(
        "vit_base_patch16_224",
        layers=ATTENTIVE,
        arguments=_PUBLISHED_VIT,
        prepare=_prepare_vit,
        finish=surgery.dropout_after_aggregation,
        num_classes=1000,
        takes=InputConfig(224),
        pretrained=False,
    ),
}  # fmt: skip
"""The named networks."""
