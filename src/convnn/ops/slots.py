"""Aggregation by slot matrices: each of the k neighbours of a query is multiplied by the matrix of its slot.

    slot_mix   out[b,n] = sum_m rho[b,n,m] W_m value[b, I[b,n,m]]

The same as a convolution of kernel k and stride k over the gathered neighbours (``nn.Conv1d``, groups included).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .bags import gather, pairs_flops, plain_bag_scatter, weighted_rows_flops
from .registry import Shape, backward_of, define
from .tiles import in_tiles


def project(value: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Apply every slot's matrix to every value: ``(b, M, C_in)`` to ``(b, M * k, C_out)``."""
    batch, rows, channels = value.shape
    out, _, k = weight.shape
    if groups == 1:
        matrix = weight.permute(2, 0, 1).reshape(k * out, channels)
        return F.linear(value, matrix).view(batch, rows * k, out)
    if weight.shape[1] == 1 and out == channels:
        return (value.unsqueeze(2) * weight.squeeze(1).t().contiguous()).reshape(batch, rows * k, out)
    grouped, slots = value.unflatten(2, (groups, -1)), weight.unflatten(0, (groups, -1))
    return torch.einsum("bmgc,gock->bmkgo", grouped, slots).reshape(batch, rows * k, out)


def plain_slot_mix(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int) -> Tensor:
    """Mix k neighbours by one matrix per slot: gather, then project.

    Values ``(B, M, C_in)``, weight ``(C_out, C_in/groups, k)``, index and weights rho ``(B, N, k)`` (or None for ones),
    to ``(B, N, C_out)``.
    """
    rows = gather(value, index)
    rows = rows if rho is None else rows * rho.unsqueeze(-1)
    out, width, k = weight.shape
    if groups == 1:
        return rows.flatten(2) @ weight.permute(2, 1, 0).reshape(k * width, out)
    if width == 1 and out == groups:  # a product of elements: runtimes are slow at as many products of 1x1 matrices
        return (rows * weight.squeeze(1).t()).sum(2)
    grouped, slots = rows.unflatten(3, (groups, -1)), weight.unflatten(0, (groups, -1))
    return torch.einsum("bnkgc,gock->bngo", grouped, slots).flatten(2)


def plain_slot_mix_backward(
    grad: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values, slot matrices and rho (empty where rho is None)."""
    grad_value, grad_weight, grad_rho = empty_gradients(grad, value, weight, index, rho, groups)
    grad, grad_value = grad.unflatten(2, (groups, -1)), grad_value.zero_()
    for m in range(index.shape[2]):  # slot by slot: no k-fold copy is held
        target, matrix = index[..., m : m + 1], weight[..., m].unflatten(0, (groups, -1))
        rows = gather(value, target).squeeze(2).unflatten(2, (groups, -1))
        grad_rows = torch.einsum("bngo,goc->bngc", grad, matrix)
        if rho is not None:
            grad_rho[..., m] = (grad_rows * rows).sum((2, 3))
            rows, grad_rows = (x * rho[..., m, None, None] for x in (rows, grad_rows))
        grad_weight[..., m] = torch.einsum("bngo,bngc->goc", grad, rows).flatten(0, 1)
        grad_value += plain_bag_scatter(grad_rows.flatten(2), target, None, value.shape[1])
    return grad_value, grad_weight, grad_rho


def gradient_by(operator: Callable[[], Callable[..., tuple[Tensor, Tensor, Tensor]]]) -> Callable[..., Any]:
    """Return the backward pass of ``slot_mix`` that calls an operator, which is asked for at the first call."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, weight, index, rho = ctx.saved_tensors
        grad_value, grad_weight, grad_rho = operator()(grad, value, weight, index, rho, *ctx.settings)
        return grad_value, grad_weight, None, None if rho is None else grad_rho.to(rho.dtype), None

    return backward


def empty_gradients(
    grad: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return empty gradients of values, slot matrices and rho."""
    grad_rho = value.new_empty(index.shape if rho is not None else (0,))
    return torch.empty_like(value), torch.empty_like(weight), grad_rho


def _projection_flops(value: Shape, weight: Shape) -> int:
    return 2 * value[0] * value[1] * math.prod(weight)


def _flops(value: Shape, weight: Shape, index: Shape, rho: Shape | None, *_: Any, **__: Any) -> int:
    """Count project-then-gather: every value by every slot's matrix, and the weighted sums of the projected rows."""
    rows = (index[0], index[1], weight[0])
    return _projection_flops(value, weight) + weighted_rows_flops(rows, index, rho)


def _backward_flops(
    grad: Shape, value: Shape, weight: Shape, index: Shape, rho: Shape | None, *_: Any, **__: Any
) -> int:
    total = 2 * _projection_flops(value, weight) + weighted_rows_flops(grad, index, rho)
    return total if rho is None else total + _projection_flops(value, weight) + pairs_flops(grad, value, index)


def _slot_mix_backward() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return slot_mix_backward


slot_mix = define(
    plain_slot_mix,
    portable=in_tiles(
        plain_slot_mix, ("b", "-", "bn", "bn"), lambda value, _, index, *__: index.shape[2] * value.shape[2]
    ),
    fake=lambda value, weight, index, rho, groups: value.new_empty(value.shape[0], index.shape[1], weight.shape[0]),
    flops=_flops,
    backward=gradient_by(_slot_mix_backward),
)
slot_mix_backward = define(
    plain_slot_mix_backward,
    fake=empty_gradients,
    flops=_backward_flops,
    backward=backward_of(plain_slot_mix_backward),
)
