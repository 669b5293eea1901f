"""Project-then-gather among few candidates, in one operator.

Between several operators every intermediate result, as large as the output, would be written to memory and read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import kernel
from ..sampled import empty_tokens, gather_or_zero, query_rows, sampled_mix, sampled_mix_backward
from .bags import add_bags, flat_slot_rows, invert_flat, scatter_rows
from .product import column_product, map_column_product, map_product, product


def _merge_outside(candidates: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Merge all candidates outside the map into one, the last, so that a token of zeros is projected only once."""
    inside = candidates >= 0
    if int(inside.sum()) >= candidates.shape[0] - 1:
        return candidates, index
    kept = candidates[inside]
    position = (inside.cumsum(0, dtype=torch.int32) - 1).masked_fill_(~inside, kept.shape[0])
    return F.pad(kept, (0, 1), value=-1), position.index_select(0, index.flatten()).view(index.shape)


def _self_rows(value: Tensor, query_grid: Sequence[int], channels_first: bool) -> Tensor:
    """Return the queries' own tokens, as rows ``(B * N, C)`` or as maps ``(B, C, N)``."""
    self_rows = query_rows(value, query_grid)
    return self_rows.movedim(-1, 1).flatten(2) if channels_first else self_rows.reshape(-1, value.shape[2])


@kernel(sampled_mix, "cpu")
def _(value: Tensor, slots: Tensor, bias: Tensor | None, candidates: Tensor, index: Tensor, *layout: Any) -> Tensor:
    query_grid, channels_first = layout
    batch, queries, out = index.shape[0], index.shape[1], slots.shape[1]
    self_rows = _self_rows(value, query_grid, channels_first)
    mixed = (map_product if channels_first else product)(self_rows, slots[0], bias)
    mixed = mixed if channels_first else mixed.view(1, -1, out)
    if index.numel():
        candidates, index = _merge_outside(candidates, index)
        rows = gather_or_zero(value, candidates).flatten(0, 1)
        table = product(rows, slots[1:].flatten(0, 1)).view(-1, out)
        table_rows = flat_slot_rows(index, candidates.shape[0])
        for total, some in zip(mixed, table_rows.chunk(mixed.shape[0]), strict=True):
            add_bags(total.t() if channels_first else total, table, some, index.shape[2])
    return mixed.transpose(1, 2) if channels_first else mixed.view(batch, queries, out)


@kernel(sampled_mix_backward, "cpu")
def _(
    grad: Tensor, value: Tensor, slots: Tensor, candidates: Tensor, index: Tensor, *layout: Any
) -> tuple[Tensor, Tensor]:
    query_grid, channels_first, with_value = layout
    batch, _, channels = value.shape
    candidates, index = _merge_outside(candidates, index)
    others, out, count = index.shape[2], slots.shape[1], candidates.shape[0]
    grad_slots, self_rows = torch.empty_like(slots), _self_rows(value, query_grid, channels_first)
    if channels_first:
        maps = grad.transpose(1, 2)
        grad_slots[0] = map_column_product(maps, self_rows)
        grad_self = map_product(maps, slots[0].t()) if with_value else None
    else:
        rows = grad.reshape(-1, out)
        grad_slots[0] = column_product(rows, self_rows)
        grad_self = product(rows, slots[0].t()) if with_value else None
    grad_value = value.new_empty(0) if grad_self is None else _to_map(grad_self, value, query_grid, channels_first)
    if not index.numel():
        grad_slots[1:] = 0
    else:
        inverted = invert_flat(flat_slot_rows(index, count), batch * count * others, others)
        sums = scatter_rows(grad, inverted, None, count * others).view(-1, others * out)
        rows = gather_or_zero(value, candidates).flatten(0, 1)
        grad_slots[1:] = column_product(sums, rows).view(others, out, channels)
        if with_value:
            grad_rows = product(sums, slots[1:].flatten(0, 1).t()).view(batch, count, channels)
            outside = (candidates < 0).view(1, -1, 1)
            grad_value.index_add_(1, candidates.clamp(min=0), grad_rows.masked_fill_(outside, 0))
    return grad_value, grad_slots


def _to_map(rows: Tensor, value: Tensor, query_grid: Sequence[int], channels_first: bool) -> Tensor:
    """Scatter the queries' rows, stored as ``_self_rows``, to their positions; tokens as ``value``, zeros elsewhere."""
    axes = len(query_grid) // 4
    if all(query_grid[axis] == query_grid[axes + axis] for axis in range(axes)):  # every token is a query
        return rows.transpose(1, 2) if channels_first else rows.view(value.shape)
    out = empty_tokens(value, value.shape[1], value.shape[2], channels_first).zero_()
    queries = query_rows(out, query_grid)
    shape = query_grid[axes : 2 * axes]
    queries.copy_(rows.unflatten(2, shape).movedim(1, -1) if channels_first else rows.view(queries.shape))
    return out
