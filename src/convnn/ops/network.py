"""The 8 or 16 best of every column at once, by a sorting network.

``topk`` goes through one row after the other. A network makes the same few comparisons whatever the numbers are, so
that each is a vector instruction for many columns. A score and the name of its key travel as one whole number, in whose
order the score comes first: as 32 bits at first, of which the name takes the score's last ones, and where two scores
are not told apart then, as 64.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = (8, 16)
"""How many a network can keep: at k = 9 the neighbours beside the query itself, and all of them."""

# From this many columns on, the network is faster than ``topk``.
MANY_COLUMNS = 512
_NAME_BITS = 32
_NAME = (1 << _NAME_BITS) - 1


def places(scores: Tensor, k: int, width: int) -> Tensor:
    """Return the places ``(k, n)`` of the k largest of every column of float32 ``(m, n)``, descending; no nan.

    ``width`` is 8 or 16, at least k and at most m.

    >>> places(torch.arange(24.0).view(-1, 1), k=3, width=8).flatten()
    tensor([23, 22, 21])
    """
    row_names = torch.arange(scores.shape[0], device=scores.device).unsqueeze(1)
    bits = max(scores.shape[0] - 1, 1).bit_length()
    ranked = best(_pack_short(scores, row_names, bits), width)[: k + 1]
    place = (ranked[:k] & ~(-1 << bits)).long()
    # Two that follow each other and differ by their names alone may be in the wrong order.
    shortened = ranked >> bits
    unsure = ((shortened[:-1] - shortened[1:]).amin(0) == 0).nonzero().squeeze(1)
    if unsure.numel():
        place[:, unsure] = _exact_places(scores.index_select(1, unsure), row_names, k, width)
    return place


def _exact_places(scores: Tensor, row_names: Tensor, k: int, width: int) -> Tensor:
    """Return what ``places`` returns, all bits of the scores compared."""
    if scores.shape[1] < MANY_COLUMNS:
        return scores.topk(k, dim=0).indices
    return names(best(pack(scores, row_names), width)[:k])


def _pack_short(scores: Tensor, names: Tensor, bits: int) -> Tensor:
    """Pack as ``pack`` does into 32 bits: the last ones of the scores are replaced by the names."""
    turned = _turned(scores.contiguous().view(torch.int32))
    return turned.bitwise_and_(-1 << bits).bitwise_or_(names.to(torch.int32))


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
    """Return the ``width`` largest (8 or 16) of every column ``(m, n)``, m at least that, and the next one.

    Whole numbers, ``(width + 1, n)``, descending; where there is no next one, the least number. Overwrites ``packed``.

    >>> best(torch.arange(24).view(-1, 1), 8).flatten()
    tensor([23, 22, 21, 20, 19, 18, 17, 16, 15])
    """
    count, columns = packed.shape
    least = torch.iinfo(packed.dtype).min
    if count % width:
        packed = torch.cat([packed, packed.new_full((width - count % width, columns), least)])
    # Short lists: row i of all of them lies together, so that one step serves all lists of all columns.
    lists, dropped = packed.view(width, -1, columns), packed.new_full((columns,), least)
    _sort(lists)
    while (many := lists.shape[1]) > 1:
        half = many // 2
        # The larger of the first and the last, of the second and the last but one, ...: the best of both lists.
        first, last = lists[:, :half], lists[:, half : 2 * half].flip(0)
        kept = torch.maximum(first, last)
        torch.maximum(dropped, torch.minimum(first, last, out=last).flatten(0, 1).amax(0), out=dropped)
        _merge(kept)
        lists = torch.cat([kept, lists[:, 2 * half :]], 1) if many % 2 else kept
    return torch.cat([lists.view(width, columns), dropped.unsqueeze(0)])


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
