"""The data of a run: images from folders, parquet files, shards and named datasets, split and in batches.

From ``--data`` to a batch: ``opening`` finds the splits (``folders``, ``parquet``, ``shards``, ``named``, ``splits``),
a source reads one image (``sources``, ``decode``), images are kept in memory (``decode_once``) or read by workers,
``loaders`` hand out the batches of an epoch (``order``), and ``images`` augments and normalizes them (``augment``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...models.backbones import InputConfig
    from ..settings import TrainSettings
    from .images import ImageData

__all__ = ["open_data"]


def open_data(settings: TrainSettings, takes: InputConfig, *, say: Callable[[str], None] | None = None) -> ImageData:
    """Return the data of a run, as batches of what its model ``takes``; ``say`` receives lines about them.

    Raises ConvNNError for data that are in doubt.
    """
    from .images import ImageData

    return ImageData(settings, takes=takes, say=say)
