"""Models by name: our small ones and every model of timm; what they take; and their layers swapped."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..errors import invalid, missing_extra
from .small import SmallConvNet, small_transformer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class InputConfig(NamedTuple):
    """The images that a model takes: the side in pixels, and the mean and deviation that they are normalised by."""

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def _small_cnn(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return SmallConvNet(num_classes=num_classes, in_channels=in_channels)


def _small_transformer(*, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    patch = max(2, image_size // 8)
    return small_transformer(num_classes=num_classes, in_channels=in_channels, image_size=image_size, patch=patch)


MODELS: dict[str, Callable[..., nn.Module]] = {"small_cnn": _small_cnn, "small_transformer": _small_transformer}
"""Our own models; each builder takes ``num_classes``, ``in_channels`` and ``image_size``."""


def list_models() -> list[str]:
    """Return the names that ``create_model`` knows: ours first, then timm's (without timm, ours alone)."""
    try:
        import timm
    except ImportError:
        return list(MODELS)
    return [*MODELS, *timm.list_models()]


def check_model(name: str) -> None:
    """Raise ConvNNError, with the closest name, when neither we nor timm have a model called ``name``."""
    if name in MODELS:
        return
    known = list_models()
    if name.split(".", maxsplit=1)[0] in known:
        return
    if len(known) == len(MODELS):
        raise missing_extra("timm", "vision")
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    fix = f"did you mean {close[0]!r}?" if close else "see convnn.models.list_models()"
    raise invalid("model", f"one of {', '.join(map(repr, MODELS))} or a model name of timm", repr(name), fix)


def input_config(name: str, image_size: int | None = None) -> InputConfig:
    """Return what the model called ``name`` takes, at ``image_size`` if one is given.

    >>> input_config("small_cnn").size
    32
    """
    check_model(name)
    if name in MODELS:
        return InputConfig(image_size or 32)
    import timm

    found = timm.get_pretrained_cfg(name)
    if found is None:
        return InputConfig(image_size or 224)
    return InputConfig(image_size or int(found.input_size[-1]), tuple(found.mean), tuple(found.std))


def create_model(
    name: str, *, num_classes: int, in_channels: int = 3, image_size: int | None = None, pretrained: bool = False
) -> nn.Module:
    """Build a model by name: one of ours, or one of timm's.

    Raises ConvNNError for a name that does not exist and for ``pretrained`` with one of ours, which have no such
    weights.

    >>> create_model("small_cnn", num_classes=10, in_channels=1).head
    Linear(in_features=32, out_features=10, bias=True)
    """
    check_model(name)
    size = input_config(name, image_size).size
    if name in MODELS:
        if pretrained:
            raise invalid("pretrained", f"False for {name!r} (it has no pretrained weights)", True, "leave it out")
        return MODELS[name](num_classes=num_classes, in_channels=in_channels, image_size=size)
    import timm

    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels, "pretrained": pretrained}
    found = timm.get_pretrained_cfg(name)
    if image_size is not None and found is not None and found.fixed_input_size:
        options["img_size"] = image_size
    model: nn.Module = timm.create_model(name, **options)
    return model
