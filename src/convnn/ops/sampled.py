"""Aggregation among few candidates: project them first, then gather; slot 0 is the query's own token.

    sampled_mix   out[b,n] = bias + W_0 value[b, q_n] + sum over slots m > 0 of W_m value[b, c[I[b,n,m]]]

q_n are the positions of the query grid, c those of the r candidates; -1 is a token of zeros. The tokens are those of a
map, stored channels-last or, as in an NCHW map, channels-first; results have the same layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bags import gather, plain_bag_scatter
from .registry import Shape, backward_of, define


def query_rows(value: Tensor, query_grid: Sequence[int]) -> Tensor:
    """View the queries' rows ``(B, *shape, C)`` among the values ``(B, M, C)`` of a map in raster order.

    ``query_grid`` is the sizes of the map, the numbers of queries, their offsets and strides, per axis.
    """
    axes = len(query_grid) // 4
    grid, shape, offset, stride = (query_grid[part * axes : (part + 1) * axes] for part in range(4))
    rows: Tensor = value.unflatten(1, tuple(grid))
    for axis in range(axes):
        end = offset[axis] + (shape[axis] - 1) * stride[axis] + 1
        rows = rows[(slice(None),) * (axis + 1) + (slice(offset[axis], end, stride[axis]),)]
    return rows


def gather_or_zero(value: Tensor, index: Tensor) -> Tensor:
    """Return the tokens ``(B, r, C)`` at positions ``(r,)``; at -1, outside the map, a token of zeros."""
    inside = index.clamp(min=0)
    # index_select would first copy values that are not channels-last.
    rows = value.index_select(1, inside) if value.is_contiguous() else value[:, inside]
    return rows.masked_fill((index < 0).view(1, -1, 1), 0)


def empty_tokens(value: Tensor, rows: int, channels: int, channels_first: bool) -> Tensor:
    """Return empty tokens ``(B, rows, channels)`` like the values, in either layout."""
    strides = (channels * rows, 1, rows) if channels_first else (channels * rows, channels, 1)
    return value.new_empty_strided((value.shape[0], rows, channels), strides)


def plain_sampled_mix(
    value: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    candidates: Tensor,
    index: Tensor,
    query_grid: Sequence[int],
    channels_first: bool,
) -> Tensor:
    """Mix the query's own token and k - 1 candidates, one matrix per slot.

    Args:
        value: ``(B, M, C_in)``, the tokens of a map in raster order.
        slots: ``(k, C_out, C_in)``, the matrices.
        bias: ``(C_out,)`` or None.
        candidates: ``(r,)``, their positions; -1 is a token of zeros.
        index: ``(B, N, k - 1)``, which candidates fill the slots behind the first.
        query_grid: the query grid, as ``query_rows`` takes it.
        channels_first: whether values and result are stored channels-first.

    Returns:
        ``(B, N, C_out)``.
    """
    mixed = F.linear(query_rows(value, query_grid).flatten(1, -2), slots[0], bias)
    rows, others = gather_or_zero(value, candidates), slots[1:]
    projected = F.linear(rows.flatten(0, 1), others.flatten(0, 1)).view(*rows.shape[:2], *others.shape[:2])
    for m in range(others.shape[0]):  # slot by slot: the gathered rows of all slots are never held at once
        mixed = mixed + gather(projected[:, :, m], index[..., m : m + 1]).squeeze(2)
    return _stored(mixed, channels_first)


def _stored(tokens: Tensor, channels_first: bool) -> Tensor:
    return tokens.transpose(1, 2).contiguous().transpose(1, 2) if channels_first else tokens.contiguous()


def plain_sampled_mix_backward(
    grad: Tensor,
    value: Tensor,
    slots: Tensor,
    candidates: Tensor,
    index: Tensor,
    query_grid: Sequence[int],
    channels_first: bool,
    with_value: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the values (empty unless ``with_value``) and of the matrices."""
    self_rows, rows = query_rows(value, query_grid).flatten(1, -2), gather_or_zero(value, candidates)
    grad_slots, grad_rows = [torch.einsum("bno,bnc->oc", grad, self_rows)], torch.zeros_like(rows)
    for m, matrix in enumerate(slots[1:]):
        grad_projected = plain_bag_scatter(grad, index[..., m : m + 1], None, rows.shape[1])
        grad_slots.append(torch.einsum("bro,brc->oc", grad_projected, rows))
        grad_rows = grad_rows + grad_projected @ matrix
    if not with_value:
        return value.new_empty(0), torch.stack(grad_slots)
    grad_value = value.new_zeros(value.shape)
    queries = query_rows(grad_value, query_grid)
    queries.copy_((grad @ slots[0]).view(queries.shape))
    grad_value.index_add_(1, candidates.clamp(min=0), grad_rows.masked_fill((candidates < 0).view(1, -1, 1), 0))
    return _stored(grad_value, channels_first), torch.stack(grad_slots)


def gradient_by(operator: Callable[[], Callable[..., tuple[Tensor, Tensor]]]) -> Callable[..., Any]:
    """Return the backward pass of ``sampled_mix`` that calls an operator, which is asked for at the first call."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_value, _, for_bias = ctx.needs_input_grad[:3]
        value, slots, _, *indices = ctx.saved_tensors
        grad_value, grad_slots = operator()(*(grad, value, slots, *indices, *ctx.settings, for_value))
        grad_bias = grad.sum((0, 1)) if for_bias else None
        return grad_value if for_value else None, grad_slots, grad_bias, None, None, None, None

    return backward


def _flops(value: Shape, slots: Shape, bias: Any, candidates: Shape, index: Shape, *_: Any, **__: Any) -> int:
    k, out, channels = slots
    return 2 * index[0] * (index[1] + candidates[0] * (k - 1)) * out * channels


def _sampled_mix_backward() -> Callable[..., tuple[Tensor, Tensor]]:
    return sampled_mix_backward


sampled_mix = define(
    plain_sampled_mix,
    fake=lambda value, slots, bias, _, index, *layout: empty_tokens(value, index.shape[1], slots.shape[1], layout[1]),
    flops=_flops,
    backward=gradient_by(_sampled_mix_backward),
)
sampled_mix_backward = define(
    plain_sampled_mix_backward,
    fake=lambda grad, value, slots, candidates, index, query_grid, channels_first, with_value: (
        empty_tokens(value, value.shape[1], value.shape[2], channels_first) if with_value else value.new_empty(0),
        torch.empty_like(slots),
    ),
    flops=lambda grad, value, slots, *rest, **_: (1 + rest[-1]) * _flops(value, slots, None, *rest),
    backward=backward_of(plain_sampled_mix_backward),
)
