"""The native aggregation among few candidates: their projections are added to the products of the queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..registry import backward_of
from ..sampled import (
    empty_tokens,
    gather_or_zero,
    gradient_by,
    plain_sampled_mix_backward,
    query_rows,
    sampled_mix,
    sampled_mix_backward,
)
from .bags import scatter_bags
from .definition import as_index, as_tokens, define_native
from .slots import gradients_into, mix_into


def _self_index(value: Tensor, query_grid: Sequence[int], batch: int) -> Tensor:
    """Return the positions of the queries ``(B, N, 1)``."""
    tokens = torch.arange(value.shape[1]).view(1, -1, 1)
    return query_rows(tokens, query_grid).reshape(1, -1, 1).expand(batch, -1, -1).contiguous()


def _matrix(slots: Tensor) -> Tensor:
    """Return the first slot's matrix as a slot weight ``(C_out, C_in, 1)``."""
    return slots[0].float().unsqueeze(2)


def _sampled_mix(
    value: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    candidates: Tensor,
    index: Tensor,
    query_grid: Sequence[int],
    channels_first: bool,
) -> Tensor:
    batch, queries, others = index.shape
    out = slots.shape[1]
    result = empty_tokens(value.float(), queries, out, channels_first)
    if not result.numel() or not value.numel():
        return sampled_mix(value, slots, bias, candidates, index, query_grid, channels_first)
    tokens, count = as_tokens(value), candidates.shape[0]
    table = None
    if others:
        rows = gather_or_zero(value, candidates).float().flatten(0, 1)
        table = rows @ slots[1:].float().flatten(0, 1).t()
    mix_into(
        result, tokens, _matrix(slots), _self_index(value, query_grid, batch), None,
        bias=None if bias is None else bias.float().contiguous(),
        added=table, added_index=as_index(index), added_rows=count * others, added_k=others,
    )  # fmt: skip
    return result.to(value.dtype)


def _sampled_mix_backward(
    grad: Tensor,
    value: Tensor,
    slots: Tensor,
    candidates: Tensor,
    index: Tensor,
    query_grid: Sequence[int],
    channels_first: bool,
    with_value: bool,
) -> tuple[Tensor, Tensor]:
    (batch, _, channels), (_, out, _), others = value.shape, slots.shape, index.shape[2]
    if not grad.numel() or not value.numel():
        return sampled_mix_backward(grad, value, slots, candidates, index, query_grid, channels_first, with_value)
    wide, g = value.float(), as_tokens(grad)
    grad_slots = torch.empty_like(slots, dtype=torch.float32)
    grad_value = empty_tokens(wide, value.shape[1], channels, channels_first) if with_value else None
    first = grad_slots[0].unsqueeze(2)
    positions = _self_index(value, query_grid, batch)
    gradients_into((grad_value, first, None), g, as_tokens(value), _matrix(slots), positions, None)
    if others:
        count = candidates.shape[0]
        sums = scatter_bags(g, index, None, count * others, by_slot=True).view(-1, others * out)
        rows = gather_or_zero(value, candidates).float().flatten(0, 1)
        rows.masked_fill_((sums == 0).all(1, keepdim=True), 0)  # a candidate that nobody chose may be NaN
        grad_slots[1:] = (sums.t() @ rows).view(others, out, channels)
        if grad_value is not None:
            grad_rows = (sums @ slots[1:].float().flatten(0, 1)).view(batch, count, channels)
            outside = (candidates < 0).view(1, -1, 1)
            grad_value.index_add_(1, candidates.clamp(min=0), grad_rows.masked_fill_(outside, 0))
    empty = value.new_empty(0)
    return empty if grad_value is None else grad_value.to(value.dtype), grad_slots.to(slots.dtype)


native_sampled_mix_backward = define_native(
    sampled_mix_backward, _sampled_mix_backward, backward_of(plain_sampled_mix_backward)
)
native_sampled_mix = define_native(sampled_mix, _sampled_mix, gradient_by(lambda: native_sampled_mix_backward))
