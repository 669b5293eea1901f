"""Images that fit in memory, batched by index: no worker processes, no copying one image at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import invalid, missing_extra
from ..module import Batch, mixed_seed

try:
    from lightning.pytorch import LightningDataModule
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error


class Split(NamedTuple):
    """One split: images ``(n, C, H, W)`` and labels ``(n,)``."""

    images: Tensor
    labels: Tensor


class Batches:
    """The batches of one split, the last one ragged; in the order of ``order``, a permutation of the images.

    >>> split = Split(torch.zeros(5, 1, 2, 2), torch.arange(5))
    >>> [labels.tolist() for _, labels in Batches(split, 2, order=torch.tensor([4, 3, 2, 1, 0]))]
    [[4, 3], [2, 1], [0]]
    """

    def __init__(self, split: Split, batch_size: int, *, order: Tensor | None = None) -> None:
        if batch_size < 1:
            raise invalid("batch_size", "at least 1", batch_size, "raise it")
        self.split, self.batch_size, self.order = split, batch_size, order

    def __len__(self) -> int:
        return (len(self.split.labels) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.split.labels)
        for start in range(0, count, self.batch_size):
            chosen = (
                slice(start, start + self.batch_size) if self.order is None else self.order[start:][: self.batch_size]
            )
            yield self.split.images[chosen], self.split.labels[chosen]


class TensorData(LightningDataModule):
    """Splits held in memory. The training order is made of ``seed`` and the epoch alone: equal seeds, equal batches."""

    def __init__(self, splits: dict[str, Split], *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.splits, self.batch_size, self.seed = splits, batch_size, seed

    def train_dataloader(self) -> Batches:
        """Return the training batches of the epoch that is about to start."""
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, next_epoch(self)))
        split = self.splits["train"]
        return Batches(split, self.batch_size, order=torch.randperm(len(split.labels), generator=generator))

    def val_dataloader(self) -> Batches:
        """Return the validation batches."""
        return Batches(self.splits["val"], 4 * self.batch_size)

    def test_dataloader(self) -> Batches:
        """Return the test batches."""
        return Batches(self.splits["test"], 4 * self.batch_size)


def next_epoch(data: LightningDataModule) -> int:
    """Return the number of the epoch that training batches are asked for: 0 first, also right after a resumption."""
    if data.trainer is None:
        return 0
    progress: Any = data.trainer.fit_loop.epoch_progress.current
    return int(progress.processed)
