"""Gather-sum, its transpose the scatter, and the products and distances of gathered pairs: each other's derivatives.

bag_sum       out[b,n]   = sum_m w[b,n,m] table[b, I[b,n,m]]
bag_scatter   out[b,j]   = sum over (n,m) with I[b,n,m] = j of w[b,n,m] source[b,n]
pair_product  out[b,n,m] = <query[b,n], table[b, I[b,n,m]]>
pair_distance out[b,n,m] = |query[b,n] - table[b, I[b,n,m]]|^2
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._precision import search_dtype, wide_dtype
from .registry import Shape, define
from .tiles import in_tiles


def gather(table: Tensor, index: Tensor) -> Tensor:
    """Gather rows: ``(B, M, C)`` by ``(B, N, k)`` to ``(B, N, k, C)``."""
    # Whole rows of one table: runtimes copy them as they are, where a gather along an axis needs an index per number.
    return F.embedding(_batch_rows(index, table.shape[1]), table.flatten(0, 1))


def index_dtype(count: int) -> torch.dtype:
    """Return the shorter type of index that can number so many rows; int64 for a number that is not known yet."""
    fits = isinstance(count, int) and count <= torch.iinfo(torch.int32).max
    return torch.int32 if fits else torch.int64


def _batch_rows(index: Tensor, rows: int) -> Tensor:
    """Number the rows of ``(B, N, k)`` through the batch: row j of sample b is row ``b * rows + j``."""
    batch = index.shape[0]
    dtype = index_dtype(batch * rows)
    return index.to(dtype) + (torch.arange(batch, dtype=dtype, device=index.device) * rows).view(-1, 1, 1)


def slot_rows(index: Tensor, rows: int) -> Tensor:
    """Number the projected rows of ``(B, N, k)`` into ``rows`` values: value j in slot m is row ``j * k + m``."""
    k = index.shape[2]
    index = index.to(index_dtype(rows * k))
    return index * k + torch.arange(k, dtype=index.dtype, device=index.device)


def plain_bag_sum(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """Sum k rows per query: ``(B, M, C)``, ``(B, N, k)``, weights ``(B, N, k)`` or ones, to ``(B, N, C)``."""
    rows = gather(table, index)
    return (rows if weight is None else rows * weight.to(table.dtype).unsqueeze(-1)).sum(2)


def plain_bag_scatter(source: Tensor, index: Tensor, weight: Tensor | None, rows: int) -> Tensor:
    """Add each query's row to its k targets: ``(B, N, C)``, ``(B, N, k)``, weights or ones, to ``(B, rows, C)``."""
    batch, _, channels = source.shape
    numbered = _batch_rows(index, rows)
    out = source.new_zeros(batch * rows, channels, dtype=search_dtype(source.dtype))
    for m in range(index.shape[2]):  # neighbor by neighbor: no k-fold copy is held
        added = source if weight is None else source * weight[..., m : m + 1].to(source.dtype)
        out.index_add_(0, numbered[..., m].flatten(), added.flatten(0, 1).to(out.dtype))
    return out.view(batch, rows, channels).to(source.dtype)


def plain_pair_product(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Multiply each query with its k rows: ``(B, N, C)``, ``(B, M, C)``, ``(B, N, k)`` to ``(B, N, k)``."""
    return (query.unsqueeze(2) * gather(table, index)).sum(-1)


def plain_pair_distance(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return the squared distances of each query from its k rows, shaped as ``pair_product``; exactly 0 for equals."""
    return (query.unsqueeze(2) - gather(table, index)).square().sum(-1)


class Bags(NamedTuple):
    """The four operators of one kind, or something of each of them."""

    sum: Callable[..., Any]
    scatter: Callable[..., Any]
    product: Callable[..., Any]
    distance: Callable[..., Any]


def derivatives(operators: Callable[[], Bags]) -> Bags:
    """Return the backward passes of the four operators, which call operators of the same kind.

    ``operators`` is called at the first backward pass, when all four are defined.
    """

    def of_sum(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, index, weight = ctx.saved_tensors
        grad_table = operators().scatter(grad, index, weight, table.shape[1]) if ctx.needs_input_grad[0] else None
        grad_weight = operators().product(grad, table, index).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return grad_table, None, grad_weight

    def of_scatter(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, index, weight = ctx.saved_tensors
        grad_source = operators().sum(grad, index, weight) if ctx.needs_input_grad[0] else None
        grad_weight = operators().product(source, grad, index).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return grad_source, None, grad_weight, None

    def of_product(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, table, index = ctx.saved_tensors
        grad_query = operators().sum(table, index, grad) if ctx.needs_input_grad[0] else None
        grad_table = operators().scatter(query, index, grad, table.shape[1]) if ctx.needs_input_grad[1] else None
        return grad_query, grad_table, None

    def of_distance(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, table, index = ctx.saved_tensors
        grad_query = grad_table = None
        # Differences of sums: in float32, coordinates that are large beside the distances would drown them.
        dtype = wide_dtype(query.device)
        wide, wide_table, wide_grad = query.to(dtype), table.to(dtype), grad.to(dtype)
        if ctx.needs_input_grad[0]:
            summed = operators().sum(wide_table, index, wide_grad)
            grad_query = (2 * (wide * wide_grad.sum(-1, keepdim=True) - summed)).to(query.dtype)
        if ctx.needs_input_grad[1]:
            total = operators().scatter(torch.ones_like(wide[..., :1]), index, wide_grad, table.shape[1])
            scattered = operators().scatter(wide, index, wide_grad, table.shape[1])
            grad_table = (2 * (wide_table * total - scattered)).to(table.dtype)
        return grad_query, grad_table, None

    return Bags(of_sum, of_scatter, of_product, of_distance)


def weighted_rows_flops(rows: Shape, index: Shape, weight: Shape | None, *_: Any, **__: Any) -> int:
    """Count a weighted sum of rows; sums without weights have no products and count 0, as additions do in torch."""
    return 0 if weight is None else 2 * math.prod(index) * rows[2]


def _numbers(rows: Tensor, table: Tensor, index: Tensor) -> int:
    return index.shape[2] * rows.shape[2]


def pairs_flops(query: Shape, table: Shape, index: Shape, **_: Any) -> int:
    """Count the products of gathered pairs."""
    return 2 * math.prod(index) * query[2]


_backward = derivatives(lambda: PLAIN)
bag_sum = define(
    plain_bag_sum,
    portable=in_tiles(plain_bag_sum, ("b", "bn", "bn"), lambda table, index, _: index.shape[2] * table.shape[2]),
    fake=lambda table, index, weight: table.new_empty(index.shape[0], index.shape[1], table.shape[2]),
    flops=weighted_rows_flops,
    backward=_backward.sum,
)
bag_scatter = define(
    plain_bag_scatter,
    fake=lambda source, index, weight, rows: source.new_empty(source.shape[0], rows, source.shape[2]),
    flops=weighted_rows_flops,
    backward=_backward.scatter,
)
pair_product = define(
    plain_pair_product,
    portable=in_tiles(plain_pair_product, ("bn", "b", "bn"), _numbers),
    fake=lambda query, table, index: query.new_empty(index.shape),
    flops=pairs_flops,
    backward=_backward.product,
)
pair_distance = define(
    plain_pair_distance,
    portable=in_tiles(plain_pair_distance, ("bn", "b", "bn"), _numbers),
    fake=lambda query, table, index: query.new_empty(index.shape),
    flops=pairs_flops,
    backward=_backward.distance,
)
PLAIN: Bags = Bags(bag_sum, bag_scatter, pair_product, pair_distance)
