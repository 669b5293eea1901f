"""The aggregation among few candidates: each slot's matrix meets the candidates once, before they are summed.

    out[b,n] = bias + W_0 value[b, own_n] + sum over the other slots m of  (W_m picked)[b, place[b,n,m]]

Slot 0 is the query's own token; ``picked`` are the candidates' values. In one operator, because between several every
intermediate result, as large as the output, would be written to memory and read again. Tokens of a map come either one
after the other, or channel by channel as in an NCHW map (``by_channels``); they are read, and results laid out, so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bags import add_bags, bag_sum, flat_slot_rows, invert_flat, scatter_rows, slot_rows
from .owned import owned
from .product import column_product, linear, map_column_product, map_product, product
from .slots import project
from .transforms import register_gradient


def queries_of(value: Tensor, lattice: Sequence[int]) -> Tensor:
    """View the queries' rows ``(B, *shape, C)`` of the map that the values ``(B, M, C)`` are the tokens of.

    ``lattice`` says where they stand: sizes of the map, numbers of queries, first positions and steps, per axis.
    """
    axes = len(lattice) // 4
    grid, shape, origin, stride = (lattice[part * axes : (part + 1) * axes] for part in range(4))
    rows: Tensor = value.unflatten(1, tuple(grid))
    for axis in range(axes):
        end = origin[axis] + (shape[axis] - 1) * stride[axis] + 1
        rows = rows[(slice(None),) * (axis + 1) + (slice(origin[axis], end, stride[axis]),)]
    return rows


def pick(value: Tensor, keys: Tensor) -> Tensor:
    """Return the tokens ``(B, r, C)`` at positions ``(r,)``; at -1, outside the map, a token of zeros."""
    at = keys.clamp(min=0)
    # index_select would first copy values that do not lie token by token.
    picked = value.index_select(1, at) if value.is_contiguous() else value[:, at]
    return picked.masked_fill(_outside(keys), 0)


def lie_by_channels(value: Tensor) -> bool:
    """Whether tokens ``(B, M, C)`` lie channel by channel, as those of an NCHW map do.

    >>> lie_by_channels(torch.randn(2, 4, 3, 3).flatten(2).transpose(1, 2)), lie_by_channels(torch.randn(2, 9, 4))
    (True, False)
    """
    return value.transpose(1, 2).is_contiguous() and not value.is_contiguous()


def _outside(keys: Tensor) -> Tensor:
    return (keys < 0).view(1, -1, 1)


def _merge_outside(keys: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Let all candidates outside the map be one, the last: a token of zeros needs to meet the matrices once only."""
    inside = keys >= 0
    # Not on other devices: there the program would have to wait for the count.
    if keys.device.type != "cpu" or int(inside.sum()) >= keys.shape[0] - 1:
        return keys, places
    kept = keys[inside]
    place = (inside.cumsum(0, dtype=torch.int32) - 1).masked_fill_(~inside, kept.shape[0])
    return F.pad(kept, (0, 1), value=-1), place.index_select(0, places.flatten()).view(places.shape)


def _own(value: Tensor, lattice: Sequence[int], by_channels: bool) -> Tensor:
    """Return the queries' own tokens, as rows ``(B * N, C)`` or as maps ``(B, C, N)``."""
    own = queries_of(value, lattice)
    return own.movedim(-1, 1).flatten(2) if by_channels else own.reshape(-1, value.shape[2])


@torch.library.custom_op("convnn::sampled_mix", mutates_args=())
def sampled_mix(
    value: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    places: Tensor,
    lattice: Sequence[int],
    by_channels: bool,
) -> Tensor:
    """Mix the query's own token and the candidates at ``places``, one matrix per slot.

    Args:
        value: ``(B, M, C_in)``, the tokens of a map in raster order.
        slots: ``(k, C_out, C_in)``, the matrices.
        bias: ``(C_out,)`` or None.
        keys: ``(r,)``, the candidates' positions; -1 is a token of zeros.
        places: ``(B, N, k - 1)``, which candidates fill the slots behind the first.
        lattice: where the queries stand, as ``queries_of`` takes it.
        by_channels: whether to read the values, and lay out the result, channel by channel.

    Returns:
        ``(B, N, C_out)``.
    """
    batch, queries, out = places.shape[0], places.shape[1], slots.shape[1]
    own = _own(value, lattice, by_channels)
    mixed = map_product(own, slots[0], bias) if by_channels else product(own, slots[0], bias).view(1, -1, out)
    if places.numel():
        keys, places = _merge_outside(keys, places)
        table = product(pick(value, keys).flatten(0, 1), slots[1:].flatten(0, 1)).view(-1, out)
        rows = flat_slot_rows(places, keys.shape[0])
        for total, theirs in zip(mixed, rows.chunk(mixed.shape[0]), strict=True):
            add_bags(total.t() if by_channels else total, table, theirs, places.shape[2])
    return owned(mixed.transpose(1, 2) if by_channels else mixed.view(batch, queries, out))


@torch.library.custom_op("convnn::sampled_mix_backward", mutates_args=())
def sampled_mix_backward(
    grad: Tensor,
    value: Tensor,
    slots: Tensor,
    keys: Tensor,
    places: Tensor,
    lattice: Sequence[int],
    by_channels: bool,
    of_value: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the values (empty unless ``of_value``) and of the matrices."""
    batch, _, channels = value.shape
    keys, places = _merge_outside(keys, places)
    others, out, count = places.shape[2], slots.shape[1], keys.shape[0]
    in_slots, own = torch.empty_like(slots), _own(value, lattice, by_channels)
    if by_channels:
        maps = grad.transpose(1, 2)
        in_slots[0] = map_column_product(maps, own)
        in_own = map_product(maps, slots[0].t()) if of_value else None
    else:
        rows = grad.reshape(-1, out)
        in_slots[0] = column_product(rows, own)
        in_own = product(rows, slots[0].t()) if of_value else None
    in_value = value.new_empty(0) if in_own is None else _to_map(in_own, value, lattice, by_channels)
    if not places.numel():
        in_slots[1:] = 0
    else:
        inverse = invert_flat(flat_slot_rows(places, count), batch * count * others, others)
        sums = scatter_rows(grad, inverse, None, count * others).view(-1, others * out)
        in_slots[1:] = column_product(sums, pick(value, keys).flatten(0, 1)).view(others, out, channels)
        if of_value:
            in_picked = product(sums, slots[1:].flatten(0, 1).t()).view(batch, count, channels)
            in_value.index_add_(1, keys.clamp(min=0), in_picked.masked_fill_(_outside(keys), 0))
    return owned(in_value), in_slots


def _to_map(own: Tensor, value: Tensor, lattice: Sequence[int], by_channels: bool) -> Tensor:
    """Put what belongs to the queries, laid out as ``_own``, where they stand; tokens as ``value``, zeros elsewhere."""
    axes = len(lattice) // 4
    if all(lattice[axis] == lattice[axes + axis] for axis in range(axes)):  # every token is a query
        return own.transpose(1, 2) if by_channels else own.view(value.shape)
    out = _empty(value, value.shape[1:], by_channels).zero_()
    queries = queries_of(out, lattice)
    shape = lattice[axes : 2 * axes]
    queries.copy_(own.unflatten(2, shape).movedim(1, -1) if by_channels else own.view(queries.shape))
    return out


def _empty(value: Tensor, shape: Sequence[int], by_channels: bool) -> Tensor:
    """Make tokens ``(B, *shape)`` like the values, in either layout."""
    rows, channels = shape
    strides = (channels * rows, 1, rows) if by_channels else (channels * rows, channels, 1)
    return value.new_empty_strided((value.shape[0], rows, channels), strides)


@sampled_mix.register_fake
def _(
    value: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    places: Tensor,
    lattice: Sequence[int],
    by_channels: bool,
) -> Tensor:
    return _empty(value, (places.shape[1], slots.shape[1]), by_channels)


@sampled_mix_backward.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    slots: Tensor,
    keys: Tensor,
    places: Tensor,
    lattice: Sequence[int],
    by_channels: bool,
    of_value: bool,
) -> tuple[Tensor, Tensor]:
    in_value = _empty(value, value.shape[1:], by_channels) if of_value else value.new_empty(0)
    return in_value, torch.empty_like(slots)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, slots, _, keys, places, ctx.lattice, ctx.by_channels = inputs
    ctx.save_for_backward(value, slots, keys, places)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, slots, keys, places = ctx.saved_tensors
    of_value, _, of_bias = ctx.needs_input_grad[:3]
    in_value, in_slots = sampled_mix_backward(grad, value, slots, keys, places, ctx.lattice, ctx.by_channels, of_value)
    in_bias = grad.sum((0, 1)) if of_bias else None
    return in_value if of_value else None, in_slots, in_bias, None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, value, slots, keys, places, ctx.lattice, _, ctx.of_value = inputs
    ctx.save_for_backward(grad, value, slots, keys, places)


def _double_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the backward pass as that of the same sum written as differentiable operators."""
    grad, value, slots, keys, places = ctx.saved_tensors
    wanted = slice(0 if ctx.of_value else 1, 2)

    def backward(grad: Tensor, value: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
        mix = partial(in_steps, keys=keys, places=places, lattice=ctx.lattice)
        gradients: tuple[Tensor, ...] = torch.func.vjp(mix, value, slots)[1](grad)
        return gradients[wanted]

    found = torch.func.vjp(backward, grad, value, slots)[1](cotangents[wanted])
    return *found, None, None, None, None, None


def in_steps(value: Tensor, slots: Tensor, keys: Tensor, places: Tensor, lattice: Sequence[int]) -> Tensor:
    """Return ``sampled_mix`` without bias, one operator a step: differentiable to any order."""
    own = linear(_own(value, lattice, False), slots[0]).view(*places.shape[:2], -1)
    projected = project(pick(value, keys), slots[1:].permute(1, 2, 0), 1)
    others: Tensor = bag_sum(projected, slot_rows(places, keys.shape[0]), None)
    return own + others


register_gradient(sampled_mix, _backward, _save)
register_gradient(sampled_mix_backward, _double_backward, _save_backward)
