"""Checks of a model's layers against the sizes of its maps, before any image is seen."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from .._utils.modules import evaluating
from ..errors import ConvNNError, invalid
from ..nn.layer import NeighborLayer

_WIDEST_PADDING = 3
"""The widest padding of replaced convolutions, of a 7x7 kernel."""

_CHEAP_SLOTS = 1024
"""Weights of so many slots are cheap; for them the layer's own error is more precise."""


def check_slots(k: object, *, size: int, padding: object = None) -> None:
    """Raise ConvNNError for a k above the tokens of any map of a square image, before its weights are allocated.

    ``padding`` is the ConvNN's ``candidate_padding``, or None. ``check_sizes`` checks the smaller maps.

    >>> check_slots(9, size=32)
    """
    around = padding if isinstance(padding, tuple) else (padding,)
    margin = max([_WIDEST_PADDING, *(amount for amount in around if isinstance(amount, int))])
    most = (size + 2 * margin) ** 2
    if isinstance(k, int) and k > max(most, _CHEAP_SLOTS):
        fix = "lower k, or use larger images"
        raise invalid("k", f"at most {most}, the tokens of a padded image of {size} x {size}", k, fix)


def check_sizes(model: nn.Module, *, channels: int, size: int) -> None:
    """Run a model on the shape of one square image, without computing anything, so that its layers check it.

    Raises the first layer's ConvNNError, with the layer's name and the image's size. A model that cannot run on shapes
    alone is not checked.

    >>> from convnn import ConvNN2d
    >>> check_sizes(nn.Sequential(ConvNN2d(3, 8, k=17)), channels=3, size=4)
    Traceback (most recent call last):
        ...
    convnn.errors.ConvNNError: k: expected at most 16 (there are 16 keys), got 17; ... (layer 0, images of 4 x 4)
    """
    seen = [""]

    def enter(_: nn.Module, __: Any, *, name: str) -> None:
        seen.append(name)

    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, NeighborLayer)]
    hooks = [layer.register_forward_pre_hook(partial(enter, name=name)) for name, layer in layers]
    try:
        run_on_shapes(model, channels=channels, size=size)
    except ConvNNError as error:
        raise ConvNNError(f"{error} (layer {seen[-1]}, images of {size} x {size})") from error
    except (RuntimeError, NotImplementedError):
        # No kernel for shapes alone, or an error of the network itself: not about k, and raised when it runs.
        return
    finally:
        for hook in hooks:
            hook.remove()


def run_on_shapes(model: nn.Module, *, channels: int, size: int) -> Any:
    """Return what a model returns for the shape of one square image, in eval mode; nothing is computed.

    >>> run_on_shapes(nn.Conv2d(3, 8, 3), channels=3, size=9).shape
    torch.Size([1, 8, 7, 7])
    """
    state = {name: torch.empty_like(value, device="meta")
             for name, value in (*model.named_parameters(), *model.named_buffers())}  # fmt: skip
    with torch.no_grad(), evaluating(model):
        return functional_call(model, state, torch.empty(1, channels, size, size, device="meta"))
