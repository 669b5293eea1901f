"""Splits as bytes in memory: every image is decoded once, before the first epoch, and kept as 8-bit values."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...errors import ConvNNError, invalid
from ..settings import TrainSettings
from .loaders import WorkerLoader
from .order import IndexBatches
from .resident import Split
from .sources import Damaged, Part, Samples

LIMIT = 4 * 2**30
"""Bytes up to which ``resident: auto`` keeps the images of a run in memory."""
PARALLEL_FROM = 4_000
"""Images from which several processes decode them: fewer are done before the processes are up."""
CHUNK = 256
"""Images that are decoded between two steps of the progress."""


def needed_bytes(images: int, channels: int, size: int) -> int:
    """Return the bytes that images take in memory, with their labels.

    >>> needed_bytes(50_000, 3, 32)
    154000000
    """
    return images * (channels * size * size + 8)


def is_resident(
    settings: TrainSettings, parts: Mapping[str, Any], *, counts: Mapping[str, int | None], size: int
) -> bool:
    """Tell whether the images are kept in memory: as asked, else where they fit and nothing is lost by it.

    ``light`` takes crops of the images as they are stored; so they are kept only if they have the model's ``size``,
    judged by the first. ``strong`` changes images one by one, by timm.
    """
    if settings.resident == "no":
        return False
    known = [count for count in counts.values() if count is not None]
    if settings.resident == "yes":
        if len(known) < len(counts):
            raise invalid("resident", "auto or no for a dataset that is a stream", "'yes'", "leave it out")
        return True
    if settings.augment == "strong" or len(known) < len(counts):
        return False
    if needed_bytes(sum(known), settings.channels, size) > LIMIT:
        return False
    return settings.augment == "none" or _stored_size(parts["train"]) == (size, size)


def _stored_size(part: Part) -> tuple[int, int] | None:
    """Return the size of the first image that can be read, of the first sixteen."""
    numbers = range(len(part.source)) if part.indices is None else part.indices.tolist()
    for number in numbers[:16]:
        try:
            width, height = part.source.read(number, "L")[0].size
        except ConvNNError:
            continue
        return width, height
    return None


def decode_once(
    samples: Samples,
    *,
    workers: int,
    on_damaged: Callable[[Damaged], None],
    advance: Callable[[int], None],
) -> Split:
    """Return the images and labels of a split, without those that ``on_damaged`` was told of.

    ``advance`` is called with the number of images, as they are decoded. Raises ConvNNError where no image can be read.
    """
    order = IndexBatches(torch.arange(len(samples)), CHUNK)
    parallel = min(os.cpu_count() or 1, 8) if len(samples) >= PARALLEL_FROM else 0
    split: Split | None = None
    filled = 0
    for images, labels in WorkerLoader(samples, order, workers=workers or parallel, on_damaged=on_damaged):
        if split is None:
            split = Split(images.new_empty(len(samples), *images.shape[1:]), labels.new_empty(len(samples)))
        end = filled + len(labels)
        split.images[filled:end], split.labels[filled:end] = images, labels
        filled = end
        advance(len(labels))
    if split is None:
        raise ValueError("a split without images")
    return Split(split.images[:filled], split.labels[:filled])
