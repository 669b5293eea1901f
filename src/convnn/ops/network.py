"""The 8 or 16 best of every column at once, by a sorting network.

``topk`` goes through one row after the other. A network makes the same few comparisons whatever the numbers are, so
that each is a vector instruction for many columns. A score and the name of its key travel as one whole number, in whose
order the score comes first.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = (8, 16)
"""How many a network can keep: at k = 9 the neighbours beside the query itself, and all of them."""

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


def best(packed: Tensor, width: int) -> Tensor:
    """Return the ``width`` largest (8 or 16) of every column ``(m, n)``, m at least that: ``(width, n)``, descending.

    Overwrites ``packed``.

    >>> best(torch.arange(24).view(-1, 1), 8).flatten()
    tensor([23, 22, 21, 20, 19, 18, 17, 16])
    """
    count, columns = packed.shape
    if count % width:
        filling = packed.new_full((width - count % width, columns), _BELOW_EVERY_SCORE)
        packed = torch.cat([packed, filling])
    # Short lists: row i of all of them lies together, so that one step serves all lists of all columns.
    lists = packed.view(width, -1, columns)
    _sort(lists)
    while (many := lists.shape[1]) > 1:
        half = many // 2
        # The larger of the first and the last, of the second and the last but one, ...: the best of both lists.
        kept = torch.maximum(lists[:, :half], lists[:, half : 2 * half].flip(0))
        _merge(kept)
        lists = torch.cat([kept, lists[:, 2 * half :]], 1) if many % 2 else kept
    return lists.view(width, columns)


def _sort(lists: Tensor) -> None:
    """Sort lists ``(width, lists, n)``, descending, by Batcher's merge exchange (Knuth, vol. 3, 5.2.2, algorithm M)."""
    width = lists.shape[0]
    step = width // 2
    while step:
        blocks = lists.unflatten(0, (-1, 2, step))
        _exchange(blocks[:, 0], blocks[:, 1])
        apart = width // (4 * step)
        while apart:
            _exchange(blocks[:-apart, 1], blocks[apart:, 0])
            apart //= 2
        step //= 2


def _merge(lists: Tensor) -> None:
    """Sort lists that fall and then rise, or a rotation of that, descending: a bitonic merge."""
    step = lists.shape[0] // 2
    while step:
        blocks = lists.unflatten(0, (-1, 2, step))
        _exchange(blocks[:, 0], blocks[:, 1])
        step //= 2


def _exchange(upper: Tensor, lower: Tensor) -> None:
    """Put the larger of each pair into ``upper`` and the smaller into ``lower``; in place, to stay in the cache."""
    larger = torch.maximum(upper, lower)
    torch.minimum(upper, lower, out=lower)
    upper.copy_(larger)
