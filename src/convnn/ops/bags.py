"""Operators on indexed rows whose derivatives are each other, to any order, without a k-fold copy.

bag_sum      out[b,n] = sum_m w[b,n,m] table[b, I[b,n,m]]            a weighted sum of gathered rows
bag_scatter  out[b,j] = sum over (n,m) with I[b,n,m] = j of w[b,n,m] source[b,n]         its transpose
pair_product out[b,n,m] = <query[b,n], table[b, I[b,n,m]]>           the products of gathered pairs
pair_distance out[b,n,m] = |query[b,n] - table[b, I[b,n,m]]|^2       their squared distances
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import wide_dtype
from .owned import owned
from .transforms import register_gradient

# Rows gathered at a time: small enough to stay in the cache, and never above the size that the allocator maps anew.
_TILE_BYTES = 1 << 20
# Torch sorts this many short integers or more by their digits, and fewer by comparing them, which takes up to 5 times
# longer; below the second number comparing is as fast.
_SORTED_BY_DIGITS, _SORTED_AT_ONCE = 1 << 15, 1 << 12


def flat_rows(index: Tensor, rows: int) -> Tensor:
    """Number the rows of the whole batch: ``(B, N, k)`` into ``B * rows`` rows, flattened; int32 where it is enough."""
    dtype = _short(index.shape[0] * rows)
    first = torch.arange(index.shape[0], dtype=dtype, device=index.device).mul_(rows)
    return (index.to(dtype) + first.view(-1, 1, 1)).flatten()


def slot_rows(index: Tensor, rows: int) -> Tensor:
    """Number the projected rows of ``(B, N, k)`` into ``rows`` values: value j in slot m is row ``j * k + m``."""
    k = index.shape[2]
    index = index.to(_short(rows * k))
    return index * k + torch.arange(k, dtype=index.dtype, device=index.device)


def flat_slot_rows(index: Tensor, rows: int) -> Tensor:
    """Number the projected rows of the whole batch, flattened: ``flat_rows`` of ``slot_rows``, in one pass."""
    batch, _, k = index.shape
    dtype = _short(batch * rows * k)
    first = torch.arange(batch, dtype=dtype, device=index.device).mul_(rows * k).view(-1, 1, 1)
    first = first + torch.arange(k, dtype=dtype, device=index.device)
    return torch.add(first, index.to(dtype), alpha=k).flatten()


def _short(count: int) -> torch.dtype:
    """Return the shorter type of index that can number so many rows."""
    return torch.int32 if count <= torch.iinfo(torch.int32).max else torch.int64


def _bags(table: Tensor, rows: Tensor, starts: Tensor, weight: Tensor | None) -> Tensor:
    """Sum the rows of ``table`` in bags that begin at ``starts``."""
    weight = None if weight is None else weight.detach().to(table.dtype)
    # Detached: a table that requires a gradient would take a slower road, which fills its output with zeros first.
    out: Tensor = torch.embedding_bag(table.detach(), rows, starts.to(rows.dtype), False, 0, False, weight)[0]
    return out


def _equal_bags(table: Tensor, rows: Tensor, k: int, weight: Tensor | None) -> Tensor:
    """Sum the rows of ``table`` in bags of k."""
    return _bags(table, rows, torch.arange(0, rows.shape[0], k, dtype=rows.dtype, device=rows.device), weight)


def add_bags(total: Tensor, table: Tensor, rows: Tensor, k: int) -> None:
    """Add to each row of ``total`` ``(n, C)`` the sum of its k rows of ``table``; ``rows`` ``(n * k,)``."""
    # Some at a time: on a CPU the sums stay in the cache until they are added.
    row = max(total.shape[1] * total.element_size(), 1)
    step = max(1, _TILE_BYTES // row if total.device.type == "cpu" else total.shape[0])
    for start in range(0, total.shape[0], step):
        part = total[start : start + step]
        part += _equal_bags(table, rows[start * k : (start + part.shape[0]) * k], k, None)


@torch.library.custom_op("convnn::bag_sum", mutates_args=())
def bag_sum(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """Sum k rows per query: ``(B, M, C)``, ``(B, N, k)``, weights ``(B, N, k)`` or ones, to ``(B, N, C)``."""
    return owned(sum_bags(table, index, weight))


def sum_bags(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """Run ``bag_sum`` inside another operator."""
    batch, count, channels = table.shape
    queries, k = index.shape[1:]
    if index.numel() == 0:
        return table.new_zeros(batch, queries, channels)
    weight = None if weight is None else weight.flatten()
    summed = _equal_bags(table.reshape(-1, channels), flat_rows(index, count), k, weight)
    return summed.reshape(batch, queries, channels)


@torch.library.custom_op("convnn::bag_scatter", mutates_args=())
def bag_scatter(source: Tensor, index: Tensor, weight: Tensor | None, rows: int) -> Tensor:
    """Add each query's row to its k targets: ``(B, N, C)``, ``(B, N, k)``, weights or ones, to ``(B, rows, C)``.

    The index is inverted by one sort of integers, so that every target is a sum over its own queries: no atomic
    additions, and the same result at every run.
    """
    batch, _, channels = source.shape
    if index.numel() == 0:
        return source.new_zeros(batch, rows, channels)
    return owned(scatter_rows(source, invert(index, rows), weight, rows))


class Inverse(NamedTuple):
    """Who chose each row: ``order`` sorts the choices ``(B * N * k,)`` by row, ``ends`` ``(B * rows,)`` parts them."""

    order: Tensor
    ends: Tensor
    k: int


def invert(index: Tensor, rows: int) -> Inverse:
    """Invert an index ``(B, N, k)`` into ``rows`` rows per sample, by one sort of integers."""
    return invert_flat(flat_rows(index, rows), index.shape[0] * rows, index.shape[2])


def invert_flat(flat: Tensor, count: int, k: int) -> Inverse:
    """Invert k numbers of rows per query, flattened, into ``count`` rows."""
    choices = flat.shape[0]
    # The fewer digits, the faster they are sorted.
    keys = flat.to(torch.int16) if count <= torch.iinfo(torch.int16).max else flat
    if flat.device.type == "cpu" and _SORTED_AT_ONCE < choices < _SORTED_BY_DIGITS:
        keys = F.pad(keys, (0, _SORTED_BY_DIGITS - choices), value=count)
    order = keys.sort(stable=True).indices[:choices]
    return Inverse(order, torch.bincount(flat, minlength=count).cumsum(0), k)


def scatter_rows(source: Tensor, inverse: Inverse, weight: Tensor | None, rows: int) -> Tensor:
    """Run ``bag_scatter`` with an index that is inverted already."""
    batch, _, channels = source.shape
    starts = F.pad(inverse.ends[:-1], (1, 0))
    weight = None if weight is None else weight.flatten()[inverse.order]
    k = inverse.k
    # A shift, where it is the same, takes a tenth of the time of a division.
    senders = inverse.order >> (k.bit_length() - 1) if k & (k - 1) == 0 else inverse.order // k
    return _bags(source.reshape(-1, channels), senders, starts, weight).reshape(batch, rows, channels)


def samples(inverse: Inverse, part: slice, *, choices: int, rows: int) -> Inverse:
    """Return the part of an inverse that belongs to some samples of ``choices`` choices and ``rows`` rows each."""
    first = part.start * choices
    order = inverse.order[first : part.stop * choices] - first
    return Inverse(order, inverse.ends[part.start * rows : part.stop * rows] - first, inverse.k)


@torch.library.custom_op("convnn::pair_product", mutates_args=())
def pair_product(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Multiply each query with its k rows: ``(B, N, C)``, ``(B, M, C)``, ``(B, N, k)`` to ``(B, N, k)``."""
    return _pairwise(query, table, index, lambda gathered, part: gathered.mul_(part))


@torch.library.custom_op("convnn::pair_distance", mutates_args=())
def pair_distance(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return the squared distances of each query from its k rows, shaped as ``pair_product``; exactly 0 for equals."""
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


@bag_sum.register_fake
def _(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    return table.new_empty(index.shape[0], index.shape[1], table.shape[2])


@bag_scatter.register_fake
def _(source: Tensor, index: Tensor, weight: Tensor | None, rows: int) -> Tensor:
    return source.new_empty(source.shape[0], rows, source.shape[2])


@pair_product.register_fake
def _(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    return query.new_empty(index.shape)


@pair_distance.register_fake
def _(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    return query.new_empty(index.shape)


def _save_bag_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, index, weight = inputs
    ctx.rows = table.shape[1]
    ctx.save_for_backward(table, index, weight)


def _bag_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    table, index, weight = ctx.saved_tensors
    of_table, _, of_weight = ctx.needs_input_grad
    return (
        bag_scatter(grad, index, weight, ctx.rows) if of_table else None,
        None,
        pair_product(grad, table, index).to(weight.dtype) if of_weight else None,
    )


def _save_bag_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    source, index, weight, _ = inputs
    ctx.save_for_backward(source, index, weight)


def _bag_scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    source, index, weight = ctx.saved_tensors
    of_source, _, of_weight, _ = ctx.needs_input_grad
    return (
        bag_sum(grad, index, weight) if of_source else None,
        None,
        pair_product(source, grad, index).to(weight.dtype) if of_weight else None,
        None,
    )


def _save_pairs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pair_product_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, table, index = ctx.saved_tensors
    of_query, of_table, _ = ctx.needs_input_grad
    return (
        bag_sum(table, index, grad) if of_query else None,
        bag_scatter(query, index, grad, table.shape[1]) if of_table else None,
        None,
    )


def _pair_distance_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, table, index = ctx.saved_tensors
    of_query, of_table, _ = ctx.needs_input_grad
    in_query = in_table = None
    # Differences of sums: in float32, coordinates that are large beside the distances would drown them.
    dtype = wide_dtype(query.device)
    wide, wide_table, wide_grad = query.to(dtype), table.to(dtype), grad.to(dtype)
    if of_query:
        summed = bag_sum(wide_table, index, wide_grad)
        in_query = (2 * (wide * wide_grad.sum(-1, keepdim=True) - summed)).to(query.dtype)
    if of_table:
        each = torch.ones_like(wide[..., :1])
        total = bag_scatter(each, index, wide_grad, table.shape[1])
        scattered = bag_scatter(wide, index, wide_grad, table.shape[1])
        in_table = (2 * (wide_table * total - scattered)).to(table.dtype)
    return in_query, in_table, None


register_gradient(bag_sum, _bag_sum_backward, _save_bag_sum)
register_gradient(bag_scatter, _bag_scatter_backward, _save_bag_scatter)
register_gradient(pair_product, _pair_product_backward, _save_pairs)
register_gradient(pair_distance, _pair_distance_backward, _save_pairs)
