"""The native aggregation by slot matrices: one product a group, or one vector a slot where groups have one channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import native
from ...native.signatures import SlotsProblem, address
from ..registry import backward_of
from ..slots import empty_gradients, gradient_by, plain_slot_mix_backward, slot_mix, slot_mix_backward
from .bags import pair_products, scatter_bags, sum_bags, vector_gradients
from .definition import as_index, as_tokens, as_weights, define_native


def _is_depthwise(weight: Tensor, groups: int) -> bool:
    return weight.shape[1] == 1 and weight.shape[0] == groups


def _vectors(weight: Tensor) -> Tensor:
    """Return the matrices ``(C, 1, k)`` of a depthwise aggregation as vectors ``(k, C)``."""
    return weight.float().squeeze(1).t().contiguous()


def _group(x: Tensor, number: int, groups: int) -> Tensor:
    """Return the channels of one group of ``(B, N, C)``."""
    width = x.shape[2] // groups
    return x[..., number * width : (number + 1) * width]


def _mix(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int) -> Tensor:
    out = value.new_empty(value.shape[0], index.shape[1], weight.shape[0])
    if not index.numel() or not out.numel() or not value.numel():
        return out.zero_()
    if _is_depthwise(weight, groups):
        return out.copy_(sum_bags(value, index, rho, _vectors(weight)))
    result = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    value, weight, index, rho = as_tokens(value), weight.float(), as_index(index), as_weights(rho)
    for number, matrix in enumerate(weight.chunk(groups)):
        mix_into(_group(result, number, groups), _group(value, number, groups), matrix, index, rho)
    return result if result is out else out.copy_(result)


def mix_into(
    result: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, **rest: Tensor | int | None
) -> None:
    """Write the aggregation of float32 tokens into ``result`` ``(B, N, C_out)``; ``rest`` is more of SlotsProblem."""
    problem = _problem(value, weight, index, rho, result=result, result_stride=result.stride(), **rest)
    native.library().convnn_slot_mix(address(problem))


def _mix_backward(
    grad: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = empty_gradients(grad, value, weight, index, rho, groups)
    if not index.numel() or not grad.numel() or not value.numel():
        grad_value, grad_weight, grad_rho = (x.zero_() for x in gradients)
        return grad_value, grad_weight, grad_rho
    if _is_depthwise(weight, groups):
        return _depthwise_backward(gradients, grad, value, weight, index, rho)
    results = [x if x.dtype == torch.float32 else torch.empty_like(x, dtype=torch.float32) for x in gradients]
    tokens = (as_tokens(grad), as_tokens(value), weight.float(), as_index(index), as_weights(rho))
    if groups == 1:
        gradients_into((results[0], results[1], None if rho is None else results[2]), *tokens)
    else:
        _grouped_backward(results, *tokens, groups)
    grad_value, grad_weight, grad_rho = (x if x is y else y.copy_(x) for x, y in zip(results, gradients, strict=True))
    return grad_value, grad_weight, grad_rho


def _grouped_backward(
    results: list[Tensor],
    grad: Tensor,
    value: Tensor,
    weight: Tensor,
    index: Tensor,
    rho: Tensor | None,
    groups: int,
) -> None:
    """Write the gradients of one group after the other; those of rho are the sums over the groups."""
    grad_value, grad_weight, grad_rho = results
    grad_rho.zero_()
    for number, (matrix, to) in enumerate(zip(weight.chunk(groups), grad_weight.chunk(groups), strict=True)):
        grad_x, g, x = (_group(each, number, groups) for each in (grad_value, grad, value))
        part = None if rho is None else torch.empty_like(grad_rho)
        gradients_into((grad_x, to, part), g, x, matrix, index, rho)
        if part is not None:
            grad_rho += part


def gradients_into(
    results: tuple[Tensor | None, Tensor, Tensor | None],
    grad: Tensor,
    value: Tensor,
    weight: Tensor,
    index: Tensor,
    rho: Tensor | None,
) -> None:
    """Write the gradients of float32 values, matrices and rho into ``results``; None is not computed."""
    grad_value, grad_weight, grad_rho = results
    problem = _problem(
        value, weight, index, rho, grad=grad, grad_stride=grad.stride(),
        grad_value=grad_value, grad_value_stride=None if grad_value is None else grad_value.stride(),
        grad_weight=grad_weight, grad_weight_stride=grad_weight.stride(), grad_rho=grad_rho,
    )  # fmt: skip
    native.library().convnn_slot_mix_backward(address(problem))


def _depthwise_backward(
    gradients: tuple[Tensor, ...], grad: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    grad_value, grad_weight, grad_rho = gradients
    vectors = _vectors(weight)
    grad_value.copy_(scatter_bags(grad, index, rho, value.shape[1], vectors))
    grad_weight.copy_(vector_gradients(grad, value, index, rho).t().unsqueeze(1))
    if rho is not None:
        grad_rho.copy_(pair_products(grad, value, index, vectors))
    return grad_value, grad_weight, grad_rho


def _problem(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, **rest: Any) -> SlotsProblem:
    return SlotsProblem(
        batch=value.shape[0], queries=index.shape[1], values=value.shape[1], channels=value.shape[2],
        out=weight.shape[0], k=weight.shape[2], value=value, weight=weight, rho=rho, index=index,
        value_stride=value.stride(), weight_stride=weight.stride(), **rest,
    )  # fmt: skip


native_slot_mix_backward = define_native(slot_mix_backward, _mix_backward, backward_of(plain_slot_mix_backward))
native_slot_mix = define_native(slot_mix, _mix, gradient_by(lambda: native_slot_mix_backward))
