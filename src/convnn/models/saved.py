"""Loading of models that timm saved, also with other classes or input channels, or as a backbone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import invalid


def load_saved(model: Any, cfg: dict[str, Any]) -> None:
    """Load the weights of a model that timm saved, in a folder or on the hub, into one whose layers are replaced.

    As in timm, a classifier for another number of classes starts from its initialisation, the first convolutions are
    adapted to other input channels, and a model made with ``features_only`` loads the weights of its layers.

    Args:
        model: of the same layers.
        cfg: timm's configuration of the saved model, with its source.

    Raises:
        ConvNNError: a first layer has weights that no other number of input channels can take.
    """
    from timm.models import load_pretrained

    channels = model.pretrained_cfg["input_size"][0]
    source = (cfg.get("input_size") or (3,))[0]
    names = cfg.get("first_conv") or ()
    first = [_plain(name) for name in ((names,) if isinstance(names, str) else names)]

    def fit(state: dict[str, Tensor], target: nn.Module) -> dict[str, Tensor]:
        weights = {_plain(name): (name, value.shape) for name, value in target.state_dict().items()}
        fitted = {}
        for name, value in state.items():
            key = _plain(name)
            if key not in weights:  # a backbone has no classifier, and not every stage
                if hasattr(target, "num_classes"):
                    fitted[name] = value
                continue
            name, shape = weights[key]
            if value.shape != shape and key.startswith(tuple(f"{layer}_" for layer in first)):
                value = _adapted(value, shape, name, channels=channels, source=source)
            fitted[name] = value
        return fitted

    # The channels are those of the weights after fit.
    cfg = {**cfg, "input_size": (channels, *cfg.get("input_size", (3, 224, 224))[1:])}
    classes = getattr(model, "num_classes", 0)  # a backbone has none
    load_pretrained(model, cfg, num_classes=classes, in_chans=channels, filter_fn=fit)


def _plain(name: str) -> str:
    """Return a weight's name in the form that a model and its ``features_only`` version share."""
    return name.removeprefix("model.").removeprefix("graph_module.").replace(".", "_")


def _adapted(weight: Tensor, shape: torch.Size, name: str, *, channels: int, source: int) -> Tensor:
    """Adapt a weight for ``source`` input channels to ``channels``, as timm does; those of coordinates stay.

    One channel takes the sum of all, more repeat them, scaled so that their sum stays.
    """
    expected = (weight.shape[0], weight.shape[1] - source + channels, *weight.shape[2:])
    if tuple(shape) != expected or weight.shape[1] < source:
        fix = f"use in_chans={source}"
        raise invalid("in_chans", f"{source}, as the saved {name} of shape {tuple(weight.shape)}", channels, fix)
    colors, others = weight[:, :source], weight[:, source:]
    if channels == 1:
        adapted = colors.sum(1, keepdim=True)
    else:
        copies = [1, math.ceil(channels / source), *(1 for _ in weight.shape[2:])]
        adapted = colors.repeat(copies)[:, :channels] * (source / channels)
    return torch.cat([adapted, others], 1)
