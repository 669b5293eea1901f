"""Matrix products with gradients to any order: ``linear`` ``x @ W.t() + bias`` and ``columns`` ``x.t() @ y``."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .registry import define


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a matrix ``(m, c)`` to rows ``(n, c)``, plus bias ``(m,)``."""
    return F.linear(x, weight, bias)


def plain_columns(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of columns: ``(n, c)`` and ``(n, m)`` to ``(c, m)``."""
    return x.t() @ y


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, _ = ctx.saved_tensors
    grad_x = linear(grad, weight.t(), None) if ctx.needs_input_grad[0] else None
    grad_weight = columns(grad, x) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, grad.sum(0) if ctx.needs_input_grad[2] else None


def _columns_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    for_x, for_y = ctx.needs_input_grad
    return linear(y, grad, None) if for_x else None, linear(x, grad.t(), None) if for_y else None


linear = define(
    plain_linear,
    fake=lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
    flops=lambda x, weight, *_, **__: 2 * x[0] * x[1] * weight[0],
    backward=_linear_backward,
)
columns = define(
    plain_columns,
    fake=lambda x, y: x.new_empty(x.shape[1], y.shape[1]),
    flops=lambda x, y, **_: 2 * x[0] * x[1] * y[1],
    backward=_columns_backward,
)
