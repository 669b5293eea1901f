"""The aggregation by slot matrices without a k-fold copy of the values, and its derivative.

Forward: every value meets every slot's matrix once, some samples at a time, and the k projected rows of each query are
summed. Backward: the output's gradients are added up per value and slot (the transpose of that sum), and two products
give the gradients of values and matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .bags import bag_scatter, invert, pair_product, samples, scatter_rows, slot_rows, sum_bags
from .product import columns, linear, product
from .transforms import register_gradient

# Projected values held at a time: what stays in the cache, and is not asked of the system anew at every call.
_CHUNK_BYTES = 1 << 22
# But so many that the matrices, which every product reads whole, are read for at least this many times their size.
_MATRICES_WORTH = 4
# Up to this many bytes, all threads get equally many samples.
_EVEN_BYTES = 1 << 24


def _chunk(value: Tensor, weight: Tensor) -> int:
    """How many samples to take at a time."""
    sample = value.shape[1] * weight.shape[0] * weight.shape[2] * value.element_size()
    matrices = weight.numel() * weight.element_size() if weight.shape[1] > 1 else 0
    count = max(1, max(_CHUNK_BYTES, _MATRICES_WORTH * matrices) // max(sample, 1))
    # As many for every thread: each then sums rows that it has written itself, and need not wait for another's cache.
    threads = torch.get_num_threads() if value.device.type == "cpu" else 1
    even = math.ceil(count / threads) * threads
    return even if even * sample <= _EVEN_BYTES else count


def project(value: Tensor, weight: Tensor, groups: int, multiply: Callable[..., Tensor] = linear) -> Tensor:
    """Apply every slot's matrix to every value: ``(b, M, C_in)`` to ``(b, M * k, C_out)``.

    ``multiply`` is ``linear``, or ``product`` inside operators, where nothing is differentiated.
    """
    batch, rows, channels = value.shape
    out, _, k = weight.shape
    if groups == 1:
        matrix = weight.permute(2, 0, 1).reshape(k * out, channels)
        return multiply(value.reshape(-1, channels), matrix).view(batch, rows * k, out)
    if weight.shape[1] == 1 and out == channels:
        return (value.unsqueeze(2) * weight.squeeze(1).t().contiguous()).reshape(batch, rows * k, out)
    grouped, slots = value.unflatten(2, (groups, -1)), weight.unflatten(0, (groups, -1))
    return torch.einsum("bmgc,gock->bmkgo", grouped, slots).reshape(batch, rows * k, out)


def _of_value(sums: Tensor, weight: Tensor, groups: int, rows: int) -> Tensor:
    """Turn the gradients per value and slot ``(b, M * k, C_out)`` into those of the values ``(b, M, C_in)``."""
    batch, (out, width, k) = sums.shape[0], weight.shape
    if groups == 1:
        matrix = weight.permute(2, 0, 1).reshape(k * out, width)
        return linear(sums.reshape(-1, k * out), matrix.t()).reshape(batch, rows, width)
    slots = weight.unflatten(0, (groups, -1))
    if width == 1 and out == groups:
        return (sums.reshape(batch, rows, k, out) * weight.squeeze(1).t().contiguous()).sum(2)
    return torch.einsum("bmkgo,gock->bmgc", sums.reshape(batch, rows, k, groups, -1), slots).flatten(2)


def _of_weight(sums: Tensor, value: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Turn the gradients per value and slot ``(b, M * k, C_out)`` into those of the slot matrices."""
    batch, rows, channels = value.shape
    out, width, k = weight.shape
    if groups == 1:
        by_slot = columns(sums.reshape(-1, k * out), value.reshape(-1, channels))
        return by_slot.view(k, out, channels).permute(1, 2, 0)
    per_slot = sums.reshape(batch, rows, k, groups, -1)
    if width == 1 and out == groups:
        return (per_slot.flatten(3) * value.unsqueeze(2)).sum((0, 1)).t().unsqueeze(1)
    return torch.einsum("bmkgo,bmgc->gock", per_slot, value.unflatten(2, (groups, -1))).flatten(0, 1)


@torch.library.custom_op("convnn::slot_mix", mutates_args=())
def slot_mix(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int) -> Tensor:
    """Mix k neighbours by one matrix per slot.

    Values ``(B, M, C_in)``, weight ``(C_out, C_in/groups, k)``, index and weights rho ``(B, N, k)`` (or None for ones),
    to ``(B, N, C_out)``.
    """
    out = value.new_empty(value.shape[0], index.shape[1], weight.shape[0])
    step = _chunk(value, weight)
    for start in range(0, value.shape[0], step):
        part = slice(start, start + step)
        projected = project(value[part], weight, groups, product)
        out[part] = sum_bags(projected, slot_rows(index[part], value.shape[1]), None if rho is None else rho[part])
    return out


@torch.library.custom_op("convnn::slot_mix_backward", mutates_args=())
def slot_mix_backward(
    grad: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of values, slot matrices and rho (empty where rho is None)."""
    of_value, of_weight = torch.empty_like(value), torch.zeros_like(weight)
    of_rho = value.new_empty(index.shape if rho is not None else (0,))
    step, rows = _chunk(value, weight), value.shape[1]
    if index.numel() == 0:
        return of_value.zero_(), of_weight, of_rho
    every_row, targets = slot_rows(index, rows), rows * weight.shape[2]
    inverse = invert(every_row, targets)
    for start in range(0, value.shape[0], step):
        part = slice(start, min(start + step, value.shape[0]))
        weights = None if rho is None else rho[part]
        theirs = samples(inverse, part, choices=index[0].numel(), rows=targets)
        sums = scatter_rows(grad[part], theirs, weights, targets)
        of_value[part] = _of_value(sums, weight, groups, rows)
        of_weight += _of_weight(sums, value[part], weight, groups)
        if rho is not None:
            of_rho[part] = pair_product(grad[part], project(value[part], weight, groups), every_row[part])
    return of_value, of_weight, of_rho


@slot_mix.register_fake
def _(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int) -> Tensor:
    return value.new_empty(value.shape[0], index.shape[1], weight.shape[0])


@slot_mix_backward.register_fake
def _(
    grad: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    of_rho = value.new_empty(index.shape if rho is not None else (0,))
    return torch.empty_like(value), torch.empty_like(weight), of_rho


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, weight, index, rho, ctx.groups = inputs
    ctx.save_for_backward(value, weight, index, rho)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, weight, index, rho = ctx.saved_tensors
    of_value, of_weight, of_rho = slot_mix_backward(grad, value, weight, index, rho, ctx.groups)
    return of_value, of_weight, None, None if rho is None else of_rho.to(rho.dtype), None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, value, weight, index, rho, ctx.groups = inputs
    ctx.save_for_backward(grad, value, weight, index, rho)


def _double_backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the backward pass, written as differentiable operators on the whole batch."""
    grad, value, weight, index, rho = ctx.saved_tensors
    inputs = [grad, value, weight] if rho is None else [grad, value, weight, rho]
    pull = torch.func.vjp(partial(_backward_of, index=index, groups=ctx.groups), *inputs)[1]
    found = pull(cotangents[: len(inputs) - 1])
    return found[0], found[1], found[2], None, None if rho is None else found[3], None


def _backward_of(
    grad: Tensor, value: Tensor, weight: Tensor, rho: Tensor | None = None, *, index: Tensor, groups: int
) -> tuple[Tensor, ...]:
    rows, places = value.shape[1], slot_rows(index, value.shape[1])
    sums = bag_scatter(grad, places, rho, rows * weight.shape[2])
    gradients = (_of_value(sums, weight, groups, rows), _of_weight(sums, value, weight, groups))
    if rho is None:
        return gradients
    return (*gradients, pair_product(grad, project(value, weight, groups), places))


register_gradient(slot_mix, _backward, _save)
register_gradient(slot_mix_backward, _double_backward, _save_backward)
