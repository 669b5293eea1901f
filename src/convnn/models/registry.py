"""Models by name: our small ones, the backbones, the named configurations, and every model of timm."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..errors import invalid, missing_extra
from .backbones import BACKBONES, CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, Backbone, InputConfig
from .named import CONFIGURATIONS
from .small import SmallConvNet, SmallResNet, small_transformer

TIMM_PREFIX = "convnn_"
"""The prefix of our names in timm's registry."""


def _small_cnn(*, num_classes: int, in_channels: int, image_size: int, global_pool: str = "avg") -> nn.Module:
    return SmallConvNet(num_classes=num_classes, in_channels=in_channels, global_pool=global_pool)


def _small_resnet(*, num_classes: int, in_channels: int, image_size: int, global_pool: str = "max") -> nn.Module:
    return SmallResNet(num_classes=num_classes, in_channels=in_channels, global_pool=global_pool)


def _small_vit(*, num_classes: int, in_channels: int, image_size: int, global_pool: str = "avg") -> nn.Module:
    return small_transformer(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch=max(2, image_size // 8),
        width=64, depth=4, global_pool=global_pool,
    )  # fmt: skip


def _small_transformer(*, num_classes: int, in_channels: int, image_size: int, global_pool: str = "avg") -> nn.Module:
    patch = max(2, image_size // 8)
    return small_transformer(
        num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch=patch, global_pool=global_pool
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": _small_cnn,
    "small_resnet": _small_resnet,
    "small_transformer": _small_transformer,
    "small_vit": _small_vit,
}
"""Our own models; each builder takes ``num_classes``, ``in_channels``, ``image_size`` and ``global_pool``."""

_SMALL: dict[str, Any] = {"num_classes": 10, "input_size": (3, 32, 32), "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
                          "classifier": "head"}  # fmt: skip
MODEL_CONFIGS: dict[str, dict[str, Any]] = {
    "small_cnn": {**_SMALL, "first_conv": "stem.0", "pool_size": (32, 32)},
    "small_resnet": {
        **_SMALL, "mean": CIFAR_MEAN, "std": CIFAR_STD, "first_conv": "stem.0", "pool_size": (4, 4),
    },
    "small_transformer": {**_SMALL, "first_conv": "patch_embed.proj", "fixed_input_size": True},
    "small_vit": {
        **_SMALL, "mean": CIFAR_MEAN, "std": CIFAR_STD, "first_conv": "patch_embed.proj", "fixed_input_size": True,
    },
}  # fmt: skip
"""Their configurations, in timm's format."""


class ResolvedName(NamedTuple):
    """The model of a name.

    Attributes:
        name: of the backbone or model, without ``convnn_`` before it.
        timm: of the model that timm builds, its tag included; empty for our own.
        backbone: the network, and its changes.
        options: of a named configuration.
    """

    name: str
    timm: str
    backbone: Backbone
    options: dict[str, Any]


def find_model(name: str) -> ResolvedName:
    """Return the model of a name; raises ConvNNError for one that neither we nor timm have.

    >>> find_model("resnet50_hybrid_random32").name, find_model("vit_tiny.augreg_in21k").timm
    ('published_resnet50', 'vit_tiny_patch16_224.augreg_in21k')
    """
    check_model(name)
    name, options = CONFIGURATIONS.get(name.removeprefix(TIMM_PREFIX), (name.removeprefix(TIMM_PREFIX), {}))
    if name in MODELS:
        return ResolvedName(name, "", Backbone("", pretrained=False), options)
    base, dot, tag = name.partition(".")
    backbone = BACKBONES.get(base, Backbone(base))
    return ResolvedName(name, backbone.timm + dot + tag, backbone, options)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that ``create_model`` knows and that match a glob pattern.

    Ours come first: the small networks, the backbones and the named configurations; then timm's. Without timm there
    are the small networks alone.

    >>> list_models("resnet50_hybrid_*")
    ['resnet50_hybrid_all', 'resnet50_hybrid_random32', 'resnet50_hybrid_grid5']
    """
    names = list(MODELS)
    try:
        import timm
    except ImportError:
        return fnmatch.filter(names, pattern)
    names += [*BACKBONES, *CONFIGURATIONS]
    known = set(names)
    names += [name for name in timm.list_models() if name not in known and not name.startswith(TIMM_PREFIX)]
    return fnmatch.filter(names, pattern)


def check_model(name: str) -> None:
    """Raise ConvNNError, with the closest name, when neither we nor timm have a model called ``name``."""
    if name in MODELS:
        return
    known = list_models()
    if name.removeprefix(TIMM_PREFIX).split(".", maxsplit=1)[0] in known:
        return
    if len(known) == len(MODELS):
        raise missing_extra("timm", "vision")
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    fix = f"did you mean {close[0]!r}?" if close else "see convnn.models.list_models()"
    expected = "one of convnn's models ('small_cnn', 'resnet50', 'vit_tiny_convnn_all', ...) or a model name of timm"
    raise invalid("model", expected, repr(name), fix)


def input_config(name: str, image_size: int | None = None, stem: str | None = None) -> InputConfig:
    """Return the images that the model called ``name`` takes, at ``image_size`` if one is given.

    >>> input_config("small_cnn").size, input_config("resnet18").size, input_config("resnet18", stem="cifar").size
    (32, 224, 32)
    """
    entry = find_model(name)
    takes = entry.backbone.takes
    if not entry.timm:
        cfg = MODEL_CONFIGS[entry.name]
        takes = InputConfig(cfg["input_size"][-1], cfg["mean"], cfg["std"])
    elif takes is None:
        import timm

        timm_cfg = timm.get_pretrained_cfg(entry.timm)
        takes = InputConfig(224)
        if timm_cfg is not None:
            takes = InputConfig(int(timm_cfg.input_size[-1]), tuple(timm_cfg.mean), tuple(timm_cfg.std))
    return takes._replace(size=image_size or (32 if stem == "cifar" else takes.size))
