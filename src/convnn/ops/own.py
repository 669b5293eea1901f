"""The two things that sampled layers do with the values: the queries' own meet a matrix, the candidates' are picked.

One operator does both, so that the gradients of the two are added where they lie, and no zeros are filled in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .product import columns, linear, product
from .vmap import register_loop


def queries_of(value: Tensor, lattice: Sequence[int]) -> Tensor:
    """View the queries' rows ``(B, *shape, C)`` of the map that the values ``(B, M, C)`` are the tokens of."""
    axes = len(lattice) // 4
    grid, shape, origin, stride = (lattice[part * axes : (part + 1) * axes] for part in range(4))
    rows: Tensor = value.unflatten(1, tuple(grid))
    for axis in range(axes):
        end = origin[axis] + (shape[axis] - 1) * stride[axis] + 1
        rows = rows[(slice(None),) * (axis + 1) + (slice(origin[axis], end, stride[axis]),)]
    return rows


def _is_whole(lattice: Sequence[int]) -> bool:
    """Whether every token of the map is a query."""
    axes = len(lattice) // 4
    return all(lattice[axis] == lattice[axes + axis] for axis in range(axes))


@torch.library.custom_op("convnn::own_and_picked", mutates_args=())
def own_and_picked(
    value: Tensor, matrix: Tensor, bias: Tensor | None, keys: Tensor, lattice: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Apply a matrix to the queries' own values, and pick the candidates' values.

    Args:
        value: ``(B, M, C_in)``, the tokens of a map in raster order.
        matrix: ``(C_out, C_in)``.
        bias: ``(C_out,)`` or None.
        keys: ``(r,)``, the candidates.
        lattice: where the queries stand: sizes of the map, numbers of queries, first positions and steps, per axis.

    Returns:
        ``(B, N, C_out)`` and ``(B, r, C_in)``.
    """
    own = queries_of(value, lattice).reshape(-1, value.shape[2])
    mixed = product(own, matrix, bias)
    # Not view(): autograd copies the gradient of a view that is then added to in place.
    whole = torch.ops.aten._unsafe_view(mixed, (value.shape[0], -1, matrix.shape[0]))
    return whole, value.index_select(1, keys)


@own_and_picked.register_fake
def _(
    value: Tensor, matrix: Tensor, bias: Tensor | None, keys: Tensor, lattice: Sequence[int]
) -> tuple[Tensor, Tensor]:
    axes, queries = len(lattice) // 4, 1
    for count in lattice[axes : 2 * axes]:
        queries = queries * count
    mixed = value.new_empty(value.shape[0], queries, matrix.shape[0])
    return mixed, value.new_empty(value.shape[0], keys.shape[0], value.shape[2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    value, matrix, _, keys, ctx.lattice = inputs
    ctx.save_for_backward(value, matrix, keys)


def _backward(ctx: Any, of_mixed: Tensor, of_picked: Tensor) -> tuple[Tensor | None, ...]:
    value, matrix, keys = ctx.saved_tensors
    wants_value, wants_matrix, wants_bias = ctx.needs_input_grad[:3]
    rows, of_value, of_matrix = of_mixed.reshape(-1, matrix.shape[0]), None, None
    if wants_value:
        of_own = linear(rows, matrix.t())
        if _is_whole(ctx.lattice):
            of_value = of_own.view(value.shape)
        else:
            of_value = value.new_zeros(value.shape)
            queries = queries_of(of_value, ctx.lattice)
            queries.copy_(of_own.view(queries.shape))
        of_value = of_value.index_add(1, keys, of_picked) if torch.is_grad_enabled() else of_value.index_add_(
            1, keys, of_picked
        )  # fmt: skip
    if wants_matrix:
        of_matrix = columns(rows, queries_of(value, ctx.lattice).reshape(-1, value.shape[2]))
    return of_value, of_matrix, rows.sum(0) if wants_bias else None, None, None


own_and_picked.register_autograd(_backward, setup_context=_save)
register_loop(own_and_picked)
