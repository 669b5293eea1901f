"""The mean and the deviation of each channel, by which images are normalized."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ...errors import ConvNNError, invalid
from .order import epoch_order
from .sources import Samples

MOST = 2_000
"""Images that are read to measure data which are not in memory."""


def measured(images: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the deviation of each channel over batches of uint8 images, as shares of white.

    >>> measured([torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)])
    ((0.5,), (0.5,))
    """
    values = torch.zeros((), dtype=torch.int64)
    total, squares = 0.0 * values.double(), 0.0 * values.double()
    for batch in images:
        exact = batch.long()
        values = values + batch[:, 0].numel()
        total = total + exact.sum((0, 2, 3)).double()
        squares = squares + (exact * exact).sum((0, 2, 3)).double()
    mean = total / values
    deviation = (squares / values - mean**2).clamp(min=0).sqrt()
    if not bool((deviation > 0).all()):
        raise invalid(
            "normalize", "training images of more than one shade", "a deviation of 0", "use --normalize model"
        )
    return tuple((mean / 255).tolist()), tuple((deviation / 255).tolist())


def some_images(samples: Samples, *, seed: int) -> Iterator[Tensor]:
    """Yield up to 2,000 images that can be read, each as a batch, drawn by the seed."""
    for position in epoch_order(len(samples), seed=seed, epoch=-3)[:MOST].tolist():
        try:
            yield samples[position][0][None]
        except ConvNNError:
            continue  # whoever reads it for training stops, or notes it
