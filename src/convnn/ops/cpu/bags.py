"""Gather-sums and scatters by ``embedding_bag``: no k-fold copy, and the same result at every run.

A scatter is the gather-sum of the inverted index: every target sums its own queries, without atomic additions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bags import bag_scatter, bag_sum, index_dtype, pair_distance, pair_product
from ..registry import kernel

# Rows gathered at a time: small enough to stay in the cache, and never so large that the allocator maps new memory.
_TILE_BYTES = 1 << 20
# Torch sorts this many short integers or more by their digits, and fewer by comparing them, which takes up to 5 times
# longer; below the second number comparing is as fast.
_SORTED_BY_DIGITS, _SORTED_AT_ONCE = 1 << 15, 1 << 12


def flat_rows(index: Tensor, rows: int) -> Tensor:
    """Number the rows of the whole batch: ``(B, N, k)`` into ``B * rows`` rows, flattened; int32 where it is enough."""
    dtype = index_dtype(index.shape[0] * rows)
    first = torch.arange(index.shape[0], dtype=dtype, device=index.device).mul_(rows)
    return (index.to(dtype) + first.view(-1, 1, 1)).flatten()


def flat_slot_rows(index: Tensor, rows: int) -> Tensor:
    """Number the projected rows of the whole batch, flattened: ``flat_rows`` of ``slot_rows``, in one pass."""
    batch, _, k = index.shape
    dtype = index_dtype(batch * rows * k)
    first = torch.arange(batch, dtype=dtype, device=index.device).mul_(rows * k).view(-1, 1, 1)
    first = first + torch.arange(k, dtype=dtype, device=index.device)
    return torch.add(first, index.to(dtype), alpha=k).flatten()


def _bags(table: Tensor, rows: Tensor, starts: Tensor, weight: Tensor | None) -> Tensor:
    """Sum the rows of ``table`` in bags that begin at ``starts``."""
    weight = None if weight is None else weight.detach().to(table.dtype)
    # Detached: for a table that requires a gradient, torch takes a slower path: it fills the output with zeros first.
    out: Tensor = torch.embedding_bag(table.detach(), rows, starts.to(rows.dtype), False, 0, False, weight)[0]
    return out


def _equal_bags(table: Tensor, rows: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """Sum the rows of ``table`` in bags of k."""
    return _bags(table, rows, torch.arange(0, rows.shape[0], k, dtype=rows.dtype, device=rows.device), weight)


def add_bags(total: Tensor, table: Tensor, rows: Tensor, k: int) -> None:
    """Add to each row of ``total`` ``(n, C)`` the sum of its k rows of ``table``; ``rows`` ``(n * k,)``."""
    # Some at a time: the sums stay in the cache until they are added.
    step = max(1, _TILE_BYTES // max(total.shape[1] * total.element_size(), 1))
    for start in range(0, total.shape[0], step):
        part = total[start : start + step]
        part += _equal_bags(table, rows[start * k : (start + part.shape[0]) * k], k, None)


@kernel(bag_sum, "cpu")
def sum_bags(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """Compute ``bag_sum``."""
    batch, count, channels = table.shape
    queries, k = index.shape[1:]
    if index.numel() == 0:
        return table.new_zeros(batch, queries, channels)
    weight = None if weight is None else weight.flatten()
    summed = _equal_bags(table.reshape(-1, channels), flat_rows(index, count), k, weight)
    return summed.reshape(batch, queries, channels)


@kernel(bag_scatter, "cpu")
def _(source: Tensor, index: Tensor, weight: Tensor | None, rows: int) -> Tensor:
    if index.numel() == 0:
        return source.new_zeros(source.shape[0], rows, source.shape[2])
    return scatter_rows(source, invert(index, rows), weight, rows)


class InvertedIndex(NamedTuple):
    """The k-NN index inverted, in CSR form: edges ``(B * N * k,)`` sorted by target row, and the rows' end offsets."""

    order: Tensor
    ends: Tensor
    k: int

    def of_samples(self, part: slice, *, edges: int, rows: int) -> InvertedIndex:
        """Return the part that belongs to some samples of so many edges and rows each."""
        first = part.start * edges
        order = self.order[first : part.stop * edges] - first
        return InvertedIndex(order, self.ends[part.start * rows : part.stop * rows] - first, self.k)


def invert(index: Tensor, rows: int) -> InvertedIndex:
    """Invert an index ``(B, N, k)`` into ``rows`` rows per sample, by one sort of integers."""
    return invert_flat(flat_rows(index, rows), index.shape[0] * rows, index.shape[2])


def invert_flat(flat: Tensor, num_rows: int, k: int) -> InvertedIndex:
    """Invert k row numbers per query, flattened, into ``num_rows`` rows."""
    edges = flat.shape[0]
    # The fewer digits, the faster they are sorted.
    keys = flat.to(torch.int16) if num_rows <= torch.iinfo(torch.int16).max else flat
    if _SORTED_AT_ONCE < edges < _SORTED_BY_DIGITS:
        keys = F.pad(keys, (0, _SORTED_BY_DIGITS - edges), value=num_rows)
    order = keys.sort(stable=True).indices[:edges]
    return InvertedIndex(order, torch.bincount(flat, minlength=num_rows).cumsum(0), k)


def scatter_rows(source: Tensor, inverted: InvertedIndex, weight: Tensor | None, rows: int) -> Tensor:
    """Compute ``bag_scatter`` with an index that is inverted already."""
    batch, _, channels = source.shape
    starts = F.pad(inverted.ends[:-1], (1, 0))
    weight = None if weight is None else weight.flatten()[inverted.order]
    k = inverted.k
    # A shift, where it is the same, takes a tenth of the time of a division.
    source_rows = inverted.order >> (k.bit_length() - 1) if k & (k - 1) == 0 else inverted.order // k
    return _bags(source.reshape(-1, channels), source_rows, starts, weight).reshape(batch, rows, channels)


@kernel(pair_product, "cpu")
def pair_products(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Compute ``pair_product``."""
    return _pairwise(query, table, index, lambda gathered, part: gathered.mul_(part))


@kernel(pair_distance, "cpu")
def pair_distances(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Compute ``pair_distance``."""
    return _pairwise(query, table, index, lambda gathered, part: gathered.sub_(part).square_())


def _pairwise(query: Tensor, table: Tensor, index: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine each query with its k rows, some queries at a time, and sum over channels."""
    channels, k = query.shape[2], index.shape[2]
    out = torch.empty(index.shape, dtype=query.dtype, device=query.device)
    if index.numel() == 0:
        return out
    rows, flat_table = flat_rows(index, table.shape[1]), table.reshape(-1, channels)
    flat_query, flat_out = query.reshape(-1, channels), out.view(-1, k)
    step = max(1, _TILE_BYTES // (k * channels * query.element_size()))
    for start in range(0, flat_query.shape[0], step):
        part = flat_query[start : start + step]
        gathered = flat_table.index_select(0, rows[start * k : (start + part.shape[0]) * k])
        combined = combine(gathered.reshape(-1, k, channels), part.unsqueeze(1))
        torch.sum(combined, dim=-1, out=flat_out[start : start + step])
    return out
