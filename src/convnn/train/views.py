"""Evaluation by several views of every image: the mean of their logits."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def mean_logits(model: Callable[[Tensor], Tensor], images: Tensor, views: str) -> Tensor:
    """Return the mean logits ``(B, num_classes)`` of the views of images ``(B, C, H, W)``.

    ``"one"`` view is the image itself. ``"mirrored"`` are two, it and its mirror image. ``"shifted"`` are six: these
    two, which count half, and both after a translation by a pixel towards two corners, the border filled by reflection.

    >>> import torch
    >>> images = F.pad(torch.ones(1, 1, 2, 2), (0, 1, 0, 1))
    >>> [mean_logits(lambda x: x[:, :, 0, 0], images, views).item() for views in ("one", "mirrored", "shifted")]
    [1.0, 0.5, 0.75]
    """
    if views == "one":
        return model(images)

    def both(x: Tensor) -> Tensor:
        return (model(x) + model(x.flip(-1))) / 2

    if views == "mirrored":
        return both(images)
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    corners = padded[..., :height, :width], padded[..., 2:, 2:]
    return both(images) / 2 + sum(map(both, corners)) / 4
