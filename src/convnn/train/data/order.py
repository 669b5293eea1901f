"""The order in which an epoch reads images: batches of numbers, of which every process gets its rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...errors import invalid
from ..randomness import mixed_seed


def epoch_order(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return a permutation of ``count`` images, made of the seed and the epoch alone.

    >>> first, again = (epoch_order(5, seed=0, epoch=1) for _ in range(2))
    >>> torch.equal(first, again), sorted(first.tolist())
    (True, [0, 1, 2, 3, 4])
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch)))


class IndexBatches:
    """The images ``order`` in batches of ``size``; a last one of fewer than ``least`` joins the one before.

    ``share`` is a process's rank r and the number R of processes: it gets the rows r, r + R, ... of each batch.

    >>> [batch.tolist() for batch in IndexBatches(torch.arange(9), 4, least=2)]
    [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    >>> [batch.tolist() for batch in IndexBatches(torch.arange(5), 4, share=(1, 2))]
    [[1, 3], []]
    """

    def __init__(self, order: Tensor, size: int, *, least: int = 1, share: tuple[int, int] = (0, 1)) -> None:
        if size < 1:
            raise invalid("batch_size", "at least 1", size, "raise it")
        self.order, self.size, self.share = order, size, share
        batches = (len(order) + size - 1) // size
        joined = batches > 1 and 0 < len(order) % size < min(least, size)
        self._count = batches - joined

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Tensor:
        """Return the numbers of the images of a batch, as far as they are this process's."""
        if not 0 <= number < self._count:
            raise IndexError(number)
        end = len(self.order) if number == self._count - 1 else (number + 1) * self.size
        rank, processes = self.share
        return self.order[number * self.size : end][rank::processes]

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self._count):
            yield self[number]
