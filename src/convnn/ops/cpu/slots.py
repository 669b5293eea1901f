"""Slot matrices by project-then-gather, without a k-fold copy of the batch.

Forward: every value is multiplied by every slot's matrix, some samples at a time, and the k projected rows of each
query are summed. Backward: the output's gradients are added up per value and slot (the transpose of that sum), and two
products give the gradients of values and matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..bags import slot_rows
from ..registry import kernel
from ..slots import project, slot_mix, slot_mix_backward
from .bags import invert, pair_products, scatter_rows, sum_bags
from .product import column_product, product

# Projected values held at a time: what stays in the cache, and is not requested from the system at every call.
_CHUNK_BYTES = 1 << 22
# But so many that the matrices, which every product reads whole, are read for at least this many times their size.
_MATRICES_WORTH = 4
# Up to this many bytes, all threads get equally many samples.
_EVEN_BYTES = 1 << 24


def _chunk(value: Tensor, weight: Tensor) -> int:
    """Return how many samples to take at a time."""
    sample = value.shape[1] * weight.shape[0] * weight.shape[2] * value.element_size()
    matrices = weight.numel() * weight.element_size() if weight.shape[1] > 1 else 0
    count = max(1, max(_CHUNK_BYTES, _MATRICES_WORTH * matrices) // max(sample, 1))
    # As many for every thread: each then sums rows that it has written itself, and need not wait for another's cache.
    threads = torch.get_num_threads()
    even = math.ceil(count / threads) * threads
    return even if even * sample <= _EVEN_BYTES else count


@kernel(slot_mix, "cpu")
def mix(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int) -> Tensor:
    """Compute ``slot_mix``."""
    out = value.new_empty(value.shape[0], index.shape[1], weight.shape[0])
    step = _chunk(value, weight)
    for start in range(0, value.shape[0], step):
        part = slice(start, start + step)
        projected = project(value[part], weight, groups, product)
        out[part] = sum_bags(projected, slot_rows(index[part], value.shape[1]), None if rho is None else rho[part])
    return out


@kernel(slot_mix_backward, "cpu")
def mix_backward(
    grad: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``slot_mix_backward``."""
    grad_value, grad_weight = torch.empty_like(value), torch.zeros_like(weight)
    grad_rho = value.new_empty(index.shape if rho is not None else (0,))
    step, rows = _chunk(value, weight), value.shape[1]
    if index.numel() == 0:
        return grad_value.zero_(), grad_weight, grad_rho
    every_row, targets = slot_rows(index, rows), rows * weight.shape[2]
    inverted = invert(every_row, targets)
    for start in range(0, value.shape[0], step):
        part = slice(start, min(start + step, value.shape[0]))
        weights = None if rho is None else rho[part]
        edges = inverted.of_samples(part, edges=index[0].numel(), rows=targets)
        sums = scatter_rows(grad[part], edges, weights, targets)
        grad_value[part] = _grad_value(sums, weight, groups, rows)
        grad_weight += _grad_weight(sums, value[part], weight, groups)
        if rho is not None:
            grad_rho[part] = pair_products(grad[part], project(value[part], weight, groups, product), every_row[part])
    return grad_value, grad_weight, grad_rho


def _grad_value(sums: Tensor, weight: Tensor, groups: int, rows: int) -> Tensor:
    """Turn the gradients per value and slot ``(b, M * k, C_out)`` into those of the values ``(b, M, C_in)``."""
    batch, (out, width, k) = sums.shape[0], weight.shape
    if groups == 1:
        matrix = weight.permute(2, 0, 1).reshape(k * out, width)
        return product(sums.reshape(-1, k * out), matrix.t()).reshape(batch, rows, width)
    slots = weight.unflatten(0, (groups, -1))
    if width == 1 and out == groups:
        return (sums.reshape(batch, rows, k, out) * weight.squeeze(1).t().contiguous()).sum(2)
    return torch.einsum("bmkgo,gock->bmgc", sums.reshape(batch, rows, k, groups, -1), slots).flatten(2)


def _grad_weight(sums: Tensor, value: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Turn the gradients per value and slot ``(b, M * k, C_out)`` into those of the slot matrices."""
    batch, rows, channels = value.shape
    out, width, k = weight.shape
    if groups == 1:
        by_slot = column_product(sums.reshape(-1, k * out), value.reshape(-1, channels))
        return by_slot.reshape(k, out, channels).permute(1, 2, 0)
    per_slot = sums.reshape(batch, rows, k, groups, -1)
    if width == 1 and out == groups:
        return (per_slot.flatten(3) * value.unsqueeze(2)).sum((0, 1)).t().unsqueeze(1)
    return torch.einsum("bmkgo,bmgc->gock", per_slot, value.unflatten(2, (groups, -1))).flatten(0, 1)
