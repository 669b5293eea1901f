"""The native forms of the operators: twins of the same meaning, which the C library runs on CPUs.

Sums are in float32; half-precision values are converted. On other devices, and where a program reaches a machine
without the library, the operator itself runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from .. import native
from ..native.signatures import EuclideanProblem, SearchProblem, SlotsProblem, address
from .euclidean import nearest_euclidean
from .nearest import fake_search, nearest
from .registry import backward_of, kernel, twin
from .slots import empty_gradients, gradient_by, plain_slot_mix_backward, slot_mix, slot_mix_backward

MOST_K = 32
"""The most neighbours that the native search finds."""

P = ParamSpec("P")
R = TypeVar("R")


def _native(op: Callable[P, R], form: Callable[P, R], backward: Callable[..., Any] | None = None) -> Callable[P, R]:
    """Define the twin that runs ``form`` where it can, and the operator itself elsewhere."""

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        takes = isinstance(first, Tensor) and first.dtype != torch.float64
        return (form if takes and native.why_not() is None else op)(*args, **kwargs)

    native_op = twin(op, op, prefix="native_", backward=backward)
    kernel(native_op, "cpu")(run)
    return native_op


def _float(x: Tensor) -> Tensor:
    """Return float32 tokens ``(B, N, C)`` of which rows or columns are contiguous, without a copy where they are."""
    x = x.float()
    return x if 1 in x.stride()[1:] and 0 not in x.stride() else x.contiguous()


def _plain(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _search(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, skip: Tensor | None, k: int, stable: bool
) -> Tensor:
    index = fake_search(query, k)
    query, key = _float(query), _float(key)
    bias, masked, skip = None if bias is None else bias.float().contiguous(), _plain(masked), _plain(skip)
    if index.numel():
        problem = SearchProblem(
            batch=query.shape[0], queries=query.shape[1], keys=key.shape[1], channels=query.shape[2], k=k,
            query=query, key=key, bias=bias, masked=masked, skip=skip, index=index,
            query_stride=query.stride(), key_stride=key.stride(),
        )  # fmt: skip
        native.library().convnn_search(address(problem))
    return index


def _search_euclidean(
    query: Tensor,
    key: Tensor,
    factor: Tensor | None,
    query_position: Tensor | None,
    key_position: Tensor | None,
    masked: Tensor | None,
    skip: Tensor | None,
    k: int,
    stable: bool,
) -> Tensor:
    index = fake_search(query, k)
    tokens = [None if x is None else x.float().contiguous() for x in (query, key, factor, query_position, key_position)]
    masked, skip = _plain(masked), _plain(skip)
    if index.numel():
        names = ("query", "key", "factor", "query_position", "key_position")
        problem = EuclideanProblem(
            batch=query.shape[0], queries=query.shape[1], keys=key.shape[1], channels=query.shape[2], k=k,
            axes=0 if query_position is None else query_position.shape[1],
            masked=masked, skip=skip, index=index, **dict(zip(names, tokens, strict=True)),
        )  # fmt: skip
        native.library().convnn_search_euclidean(address(problem))
    return index


def _mix(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int) -> Tensor:
    out = value.new_empty(value.shape[0], index.shape[1], weight.shape[0])
    result = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    if groups != 1 or not index.numel() or not out.numel():
        return slot_mix(value, weight, index, rho, groups)
    value, weight, index, rho = _float(value), weight.float(), index.contiguous(), _weights(rho)
    problem = _slots(value, weight, index, rho, result=result, result_stride=result.stride())
    native.library().convnn_slot_mix(address(problem))
    return result if result is out else out.copy_(result)


def _mix_backward(
    grad: Tensor, value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    if groups != 1 or not index.numel() or not grad.numel() or not value.numel():
        return slot_mix_backward(grad, value, weight, index, rho, groups)
    gradients = empty_gradients(grad, value, weight, index, rho, groups)
    results = [x if x.dtype == torch.float32 else torch.empty_like(x, dtype=torch.float32) for x in gradients]
    grad, value, weight, index, rho = _float(grad), _float(value), weight.float(), index.contiguous(), _weights(rho)
    problem = _slots(
        value, weight, index, rho, grad=grad, grad_stride=grad.stride(),
        grad_value=results[0], grad_value_stride=results[0].stride(),
        grad_weight=results[1], grad_weight_stride=results[1].stride(),
        grad_rho=None if rho is None else results[2],
    )  # fmt: skip
    native.library().convnn_slot_mix_backward(address(problem))
    grad_value, grad_weight, grad_rho = (x if x is y else y.copy_(x) for x, y in zip(results, gradients, strict=True))
    return grad_value, grad_weight, grad_rho


def _weights(rho: Tensor | None) -> Tensor | None:
    return None if rho is None else rho.float().contiguous()


def _slots(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, **rest: Any) -> SlotsProblem:
    return SlotsProblem(
        batch=value.shape[0], queries=index.shape[1], values=value.shape[1], channels=value.shape[2],
        out=weight.shape[0], k=weight.shape[2], value=value, weight=weight, rho=rho, index=index,
        value_stride=value.stride(), weight_stride=weight.stride(), **rest,
    )  # fmt: skip


native_nearest = _native(nearest, _search)
native_nearest_euclidean = _native(nearest_euclidean, _search_euclidean)
native_slot_mix_backward = _native(slot_mix_backward, _mix_backward, backward_of(plain_slot_mix_backward))
native_slot_mix = _native(slot_mix, _mix, gradient_by(lambda: native_slot_mix_backward))
