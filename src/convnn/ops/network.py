"""The eight best of every column at once, by a sorting network.

``topk`` goes through one row after the other. A network makes the same few comparisons whatever the numbers are, so
that each is a vector instruction for many columns. A score and the name of its key travel as one whole number, in whose
order the score comes first.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 8
"""How many a network keeps: the neighbours beside the query itself at k = 9."""

_BELOW_EVERY_SCORE = torch.iinfo(torch.int64).min
_NAME_BITS = 32
_NAME = (1 << _NAME_BITS) - 1


def pack(scores: Tensor, names: Tensor) -> Tensor:
    """Pack float32 scores ``(m, n)`` and names below 2^32, ``(m, 1)`` or ``(m, n)`` int64, into whole numbers.

    They order as the scores do, without loss; nan must not be among them.

    >>> names(pack(torch.tensor([[-1.0], [2.0]]), torch.tensor([[5], [7]])).sort(dim=0).values).flatten()
    tensor([5, 7])
    """
    return _turned(scores.contiguous().view(torch.int32)).long().bitwise_left_shift_(_NAME_BITS).bitwise_or_(names)


def names(packed: Tensor) -> Tensor:
    """Return the names in packed numbers."""
    return packed & _NAME


def _turned(bits: Tensor) -> Tensor:
    """Turn the bits of floats into integers of the same order: of negative floats, whose bits are more is less."""
    return (bits >> 31).bitwise_and_(torch.iinfo(torch.int32).max).bitwise_xor_(bits)


def best(packed: Tensor, *, in_order: bool = True) -> Tensor:
    """Return the eight largest of every column ``(m, n)``, m at least 8, as ``(8, n)``; overwrites ``packed``.

    Descending if ``in_order``, else in any order, which costs less.

    >>> best(torch.arange(24).view(-1, 1)).flatten()
    tensor([23, 22, 21, 20, 19, 18, 17, 16])
    """
    count, columns = packed.shape
    if count % WIDTH:
        filling = packed.new_full((WIDTH - count % WIDTH, columns), _BELOW_EVERY_SCORE)
        packed = torch.cat([packed, filling])
    # Lists of eight: row i of all of them lies together, so that one step serves all lists of all columns.
    lists = packed.view(WIDTH, -1, columns)
    _sort(lists)
    while (many := lists.shape[1]) > 1:
        half = many // 2
        # The larger of the first and the last, of the second and the last but one, ...: the best eight of both lists.
        kept = torch.maximum(lists[:, :half], lists[:, half : 2 * half].flip(0))
        if many > 2 or in_order:
            for distance in (4, 2, 1):
                _exchange(*_pairs(kept, distance))
        lists = torch.cat([kept, lists[:, 2 * half :]], 1) if many % 2 else kept
    return lists.view(WIDTH, columns)


def _sort(lists: Tensor) -> None:
    """Sort lists of eight ``(8, lists, n)``, descending, by Batcher's odd-even merges (Knuth, vol. 3, 5.3.4)."""
    _exchange(*_pairs(lists, 1))
    _exchange(*_pairs(lists, 2))
    _exchange(lists[1::4], lists[2::4])
    _exchange(*_pairs(lists, 4))
    _exchange(lists[2:4], lists[4:6])
    _exchange(lists[1:6:2], lists[2:7:2])


def _pairs(lists: Tensor, distance: int) -> tuple[Tensor, Tensor]:
    """Return the places whose partners stand ``distance`` below, and the partners."""
    upper, lower = lists.unflatten(0, (-1, 2, distance)).unbind(1)
    return upper, lower


def _exchange(upper: Tensor, lower: Tensor) -> None:
    """Put the larger of each pair into ``upper`` and the smaller into ``lower``; in place, to stay in the cache."""
    larger = torch.maximum(upper, lower)
    torch.minimum(upper, lower, out=lower)
    upper.copy_(larger)
