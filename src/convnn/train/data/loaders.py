"""Loaders that know their position in the epoch: one of images in memory, one of workers, one of streams."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, default_collate

from ...errors import ConvNNError, invalid
from ..module import Batch
from .order import IndexBatches
from .resident import Split
from .sources import Damaged, Guarded, Samples

OnDamaged = Callable[[Damaged], None]


class Loader(ABC):
    """The batches of one epoch, from the position that ``load_state_dict`` gave.

    The position is the number of batches that were yielded. The next iteration starts at a position that was loaded,
    every other one at the first batch; so does the next one after a state of another epoch, or of one that is over.
    """

    def __init__(self, *, epoch: int) -> None:
        self.epoch, self.position, self._first = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the position in it."""
        return {"epoch": self.epoch, "batches": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the batches that were yielded."""
        self.position = self._first = state_dict["batches"] if state_dict["epoch"] == self.epoch else 0

    def __iter__(self) -> Iterator[Batch]:
        first, self._first = self._first, 0
        self.position = first
        for batch in self._from(first):
            self.position += 1
            yield batch

    @abstractmethod
    def _from(self, first: int) -> Iterator[Batch]:
        """Yield the batches from number ``first`` on."""


class SizedLoader(Loader):
    """A loader whose batches are numbered."""

    def __init__(self, batches: IndexBatches, *, epoch: int = 0) -> None:
        super().__init__(epoch=epoch)
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the batches that were yielded, unless these are all."""
        over = state_dict["batches"] >= len(self)
        super().load_state_dict({**state_dict, "batches": 0} if over else state_dict)


class ResidentLoader(SizedLoader):
    """Batches of images in memory: uint8 ``(B, C, H, W)`` and labels ``(B,)``."""

    def __init__(self, split: Split, batches: IndexBatches, *, epoch: int = 0) -> None:
        super().__init__(batches, epoch=epoch)
        self.split = split

    def _from(self, first: int) -> Iterator[Batch]:
        for number in range(first, len(self.batches)):
            chosen = self.batches[number]
            yield self.split.images[chosen], self.split.labels[chosen]


class WorkerLoader(SizedLoader):
    """Batches of images that are read and transformed by ``workers`` processes, or by this one where there are none.

    Damaged images are given to ``on_damaged``, which raises or returns; then the batch is smaller. Raises ConvNNError
    for a batch without any image that can be read, and for a worker that was killed.
    """

    def __init__(
        self, samples: Samples, batches: IndexBatches, *, workers: int, on_damaged: OnDamaged, epoch: int = 0
    ) -> None:
        super().__init__(batches, epoch=epoch)
        self.samples, self.workers, self.on_damaged = samples, workers, on_damaged

    def _from(self, first: int) -> Iterator[Batch]:
        left = [self.batches[number].tolist() for number in range(first, len(self.batches))]
        loader: DataLoader[Any] = DataLoader(
            Guarded(self.samples),
            batch_sampler=left,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(0),  # else every iterator would draw from the run's random state
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
        )
        for batch, damaged in alive(loader):
            for image in damaged:
                self.on_damaged(image)
            if batch is None:
                got = f"none of {len(damaged)}"
                raise invalid("data", "a batch with an image that can be read", got, "mend the data")
            yield batch


class StreamLoader(Loader):
    """Batches of a stream, whose images have no numbers: a position is reached by reading what is before it."""

    def __init__(self, dataset: IterableDataset[Any], size: int, *, drop_last: bool, workers: int, epoch: int) -> None:
        super().__init__(epoch=epoch)
        self.dataset, self.size, self.drop_last, self.workers = dataset, size, drop_last, workers

    def _from(self, first: int) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_size=self.size,
            drop_last=self.drop_last,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(self.epoch),
            pin_memory=torch.cuda.is_available(),
        )
        for number, batch in enumerate(alive(loader)):
            if number >= first:
                yield batch[0], batch[1]


def collate(samples: list[Any]) -> tuple[Any, list[Damaged]]:
    """Stack the samples that could be read to a batch, or None, and list the others."""
    damaged = [sample for sample in samples if isinstance(sample, Damaged)]
    good = [sample for sample in samples if not isinstance(sample, Damaged)]
    return (tuple(default_collate(good)) if good else None), damaged


def alive(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yield a loader's batches; a worker that was killed is an error of one line."""
    try:
        yield from loader
    except RuntimeError as error:
        if isinstance(error, ConvNNError) or "DataLoader worker" not in str(error):
            raise
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        fix = "lower --workers, or give them more memory (also shared memory, in a container)"
        raise invalid("workers", "processes that read images and stay alive", f"a lost one ({reason})", fix) from error
