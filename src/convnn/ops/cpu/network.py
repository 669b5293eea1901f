"""The 8 or 16 largest of every column at once, by a sorting network.

``topk`` goes through one row after the other. A network makes the same few comparisons whatever the numbers are, so
that each is a vector instruction for many columns. A score is packed with its index into one integer that orders by the
score first: into 32 bits, where the index replaces the score's last bits, and into 64 where two scores are equal then.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = (8, 16)
"""How many a network can keep: at k = 9 the neighbours without the query itself, and with it."""

# From this many columns on, the network is faster than ``topk``.
MANY_COLUMNS = 512
_INDEX_BITS = 32
_INDEX = (1 << _INDEX_BITS) - 1


def topk_of_columns(scores: Tensor, k: int, width: int) -> Tensor:
    """Return the indices ``(k, n)`` of the k largest of every column of float32 ``(m, n)``, descending; no NaN.

    ``width`` is 8 or 16, at least k and at most m.

    >>> topk_of_columns(torch.arange(24.0).view(-1, 1), k=3, width=8).flatten()
    tensor([23, 22, 21])
    """
    rows = torch.arange(scores.shape[0], device=scores.device).unsqueeze(1)
    bits = max(scores.shape[0] - 1, 1).bit_length()
    ranked = largest(_pack_short(scores, rows, bits), width)[: k + 1]
    index = (ranked[:k] & ~(-1 << bits)).long()
    # Two that follow each other and differ by their indices alone may be in the wrong order.
    shortened = ranked >> bits
    maybe_tied = ((shortened[:-1] - shortened[1:]).amin(0) == 0).nonzero().squeeze(1)
    if maybe_tied.numel():
        index[:, maybe_tied] = _exact_topk(scores.index_select(1, maybe_tied), rows, k, width)
    return index


def _exact_topk(scores: Tensor, rows: Tensor, k: int, width: int) -> Tensor:
    """Return what ``topk_of_columns`` returns, all bits of the scores compared."""
    if scores.shape[1] < MANY_COLUMNS:
        return scores.topk(k, dim=0).indices
    return unpack_indices(largest(pack(scores, rows), width)[:k])


def _pack_short(scores: Tensor, indices: Tensor, bits: int) -> Tensor:
    """Pack as ``pack`` does into 32 bits: the last ones of the scores are replaced by the indices."""
    ordered = _sortable_int(scores.contiguous().view(torch.int32))
    return ordered.bitwise_and_(-1 << bits).bitwise_or_(indices.to(torch.int32))


def pack(scores: Tensor, indices: Tensor) -> Tensor:
    """Pack float32 scores ``(m, n)`` and indices below 2^32, ``(m, 1)`` or ``(m, n)`` int64, into int64.

    These order as the scores do, without loss; NaN must not be among them.

    >>> unpack_indices(pack(torch.tensor([[-1.0], [2.0]]), torch.tensor([[5], [7]])).sort(dim=0).values).flatten()
    tensor([5, 7])
    """
    ordered = _sortable_int(scores.contiguous().view(torch.int32)).long()
    return ordered.bitwise_left_shift_(_INDEX_BITS).bitwise_or_(indices)


def unpack_indices(packed: Tensor) -> Tensor:
    """Return the indices in packed numbers."""
    return packed & _INDEX


def _sortable_int(float_bits: Tensor) -> Tensor:
    """Map float32 bits to int32 such that integer order equals float order (those of negative floats run backwards)."""
    return (float_bits >> 31).bitwise_and_(torch.iinfo(torch.int32).max).bitwise_xor_(float_bits)


def largest(packed: Tensor, width: int) -> Tensor:
    """Return the ``width`` largest (8 or 16) of every column ``(m, n)``, m at least that, and the next one.

    Integers ``(width + 1, n)``, descending; where there is no next one, the least integer. Overwrites ``packed``.

    >>> largest(torch.arange(24).view(-1, 1), 8).flatten()
    tensor([23, 22, 21, 20, 19, 18, 17, 16, 15])
    """
    count, columns = packed.shape
    least = torch.iinfo(packed.dtype).min
    if count % width:
        packed = torch.cat([packed, packed.new_full((width - count % width, columns), least)])
    # Short lists: row i of all of them is contiguous, so that one step serves all lists of all columns.
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
