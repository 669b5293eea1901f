"""The aggregation among few candidates: each slot's matrix meets the candidates once, before they are summed.

    out[b,n] = bias + W_0 value[b, own_n] + sum over the other slots m of  (W_m picked)[b, place[b,n,m]]

Slot 0 is the query's own token; ``picked`` are the candidates' values. In one operator, because between several every
intermediate result, as large as the output, would be written to memory and read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .bags import add_bags, bag_sum, flat_slot_rows, invert_flat, scatter_rows, slot_rows
from .product import column_product, linear, product
from .slots import project
from .vmap import register_loop


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
    return value.index_select(1, keys.clamp(min=0)).masked_fill(_outside(keys), 0)


def _outside(keys: Tensor) -> Tensor:
    return (keys < 0).view(1, -1, 1)


def _own(value: Tensor, lattice: Sequence[int]) -> Tensor:
    return queries_of(value, lattice).reshape(-1, value.shape[2])


def _matrices(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Part ``(C_out, C_in, k)`` into the own slot's matrix and the others' below each other."""
    slots = weight.permute(2, 0, 1).contiguous()
    return slots[0], slots[1:].flatten(0, 1)


@torch.library.custom_op("convnn::sampled_mix", mutates_args=())
def sampled_mix(
    value: Tensor, weight: Tensor, bias: Tensor | None, keys: Tensor, places: Tensor, lattice: Sequence[int]
) -> Tensor:
    """Mix the query's own token and the candidates at ``places``, one matrix per slot.

    Args:
        value: ``(B, M, C_in)``, the tokens of a map in raster order.
        weight: ``(C_out, C_in, k)``.
        bias: ``(C_out,)`` or None.
        keys: ``(r,)``, the candidates' positions; -1 is a token of zeros.
        places: ``(B, N, k - 1)``, which candidates fill the slots behind the first.
        lattice: where the queries stand, as ``queries_of`` takes it.

    Returns:
        ``(B, N, C_out)``.
    """
    first, others = _matrices(weight)
    mixed = product(_own(value, lattice), first, bias)
    if places.numel():
        table = product(pick(value, keys).flatten(0, 1), others).view(-1, weight.shape[0])
        add_bags(mixed, table, flat_slot_rows(places, keys.shape[0]), places.shape[2])
    return mixed.view(places.shape[0], places.shape[1], weight.shape[0])


@torch.library.custom_op("convnn::sampled_mix_backward", mutates_args=())
def sampled_mix_backward(
    grad: Tensor,
    value: Tensor,
    weight: Tensor,
    keys: Tensor,
    places: Tensor,
    lattice: Sequence[int],
    of_value: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the values (empty unless ``of_value``) and of the matrices."""
    batch, _, channels = value.shape
    out, slots, count = weight.shape[0], places.shape[2], keys.shape[0]
    rows = grad.reshape(-1, out)
    first, others = _matrices(weight)
    in_weight = torch.empty_like(weight)
    in_weight[..., 0] = column_product(rows, _own(value, lattice))
    in_value = _to_map(product(rows, first.t()), value, lattice) if of_value else value.new_empty(0)
    if not places.numel():
        in_weight[..., 1:] = 0
    else:
        inverse = invert_flat(flat_slot_rows(places, count), batch * count * slots, slots)
        sums = scatter_rows(grad, inverse, None, count * slots).view(-1, slots * out)
        by_slot = column_product(sums, pick(value, keys).flatten(0, 1))
        in_weight[..., 1:] = by_slot.view(slots, out, channels).permute(1, 2, 0)
        if of_value:
            in_picked = product(sums, others.t()).view(batch, count, channels)
            in_value.index_add_(1, keys.clamp(min=0), in_picked.masked_fill_(_outside(keys), 0))
    return in_value, in_weight


def _to_map(rows: Tensor, value: Tensor, lattice: Sequence[int]) -> Tensor:
    """Put the rows of the queries where they stand on a map shaped as ``value``, zeros elsewhere."""
    axes = len(lattice) // 4
    if all(lattice[axis] == lattice[axes + axis] for axis in range(axes)):  # every token is a query
        return rows.view(value.shape)
    out = value.new_zeros(value.shape)
    queries = queries_of(out, lattice)
    queries.copy_(rows.view(queries.shape))
    return out


@sampled_mix.register_fake
def _(
    value: Tensor, weight: Tensor, bias: Tensor | None, keys: Tensor, places: Tensor, lattice: Sequence[int]
) -> Tensor:
    return value.new_empty(places.shape[0], places.shape[1], weight.shape[0])


@sampled_mix_backward.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    weight: Tensor,
    keys: Tensor,
    places: Tensor,
    lattice: Sequence[int],
    of_value: bool,
) -> tuple[Tensor, Tensor]:
    return value.new_empty(value.shape if of_value else (0,)), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, weight, _, keys, places, ctx.lattice = inputs
    ctx.save_for_backward(value, weight, keys, places)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, weight, keys, places = ctx.saved_tensors
    of_value, _, of_bias = ctx.needs_input_grad[:3]
    in_value, in_weight = sampled_mix_backward(grad, value, weight, keys, places, ctx.lattice, of_value)
    in_bias = grad.sum((0, 1)) if of_bias else None
    return in_value if of_value else None, in_weight, in_bias, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad, value, weight, keys, places, ctx.lattice, ctx.of_value = inputs
    ctx.save_for_backward(grad, value, weight, keys, places)


def _double_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the backward pass as that of the same sum written as differentiable operators."""
    grad, value, weight, keys, places = ctx.saved_tensors
    with torch.enable_grad():
        given = [x if x.requires_grad else x.detach().requires_grad_() for x in (grad, value, weight)]
        mixed = in_steps(given[1], given[2], keys, places, ctx.lattice)
        outputs = torch.autograd.grad(mixed, given[1:], given[0], create_graph=True)
        wanted = slice(0 if ctx.of_value else 1, 2)
        found = torch.autograd.grad(outputs[wanted], given, cotangents[wanted], create_graph=True, allow_unused=True)
    return *found, None, None, None, None


def in_steps(value: Tensor, weight: Tensor, keys: Tensor, places: Tensor, lattice: Sequence[int]) -> Tensor:
    """Return ``sampled_mix`` without bias, one operator a step: differentiable to any order."""
    own = linear(_own(value, lattice), weight[..., 0]).view(*places.shape[:2], -1)
    others: Tensor = bag_sum(project(pick(value, keys), weight[..., 1:], 1), slot_rows(places, keys.shape[0]), None)
    return own + others


sampled_mix.register_autograd(_backward, setup_context=_save)
sampled_mix_backward.register_autograd(_double_backward, setup_context=_save_backward)

for _op in (sampled_mix, sampled_mix_backward):
    register_loop(_op)
