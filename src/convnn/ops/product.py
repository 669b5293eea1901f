"""Products of matrices by the fastest road that PyTorch has on the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .vmap import register_loop

# From this many multiply-adds on, oneDNN's set-up costs less than it saves.
_WORTH_ONEDNN = 1 << 18


def _onednn() -> Any:
    """Return PyTorch's door to oneDNN's inner product, or None in a build without it (or a later one that moved it)."""
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


_inner_product = _onednn()


def product(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the inner products of rows: ``(n, c)`` and ``(m, c)`` to ``(n, m)``, plus bias ``(m,)``; no gradient.

    For use inside custom operators; ``linear`` is the one that autograd knows.

    >>> product(torch.eye(2), torch.tensor([[1.0, 2.0]])).flatten()
    tensor([1., 2.])
    """
    if _goes_to_onednn(x, y):
        # Rows that are neither contiguous nor a transpose would run in its slow reference code.
        out: Tensor = _inner_product(_dense(x), _dense(y), bias, "none", [], "")
        return out
    return F.linear(x, y, bias)


def _goes_to_onednn(x: Tensor, y: Tensor) -> bool:
    """Whether torch.mm would run in the BLAS library, which on some processors takes twice oneDNN's time."""
    known = x.device.type == "cpu" and x.dtype == y.dtype == torch.float32 and _inner_product is not None
    return known and _onednn_is_on() and x.shape[0] * y.shape[0] * x.shape[1] >= _WORTH_ONEDNN


def _onednn_is_on() -> bool:
    """Whether ``torch.backends.mkldnn.flags`` leaves oneDNN on."""
    return bool(torch._C._get_mkldnn_enabled())


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


@torch.library.custom_op("convnn::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return product(x, weight, bias)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply ``F.linear`` to rows ``(n, c)`` by the fastest road, differentiable to any order."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        out: Tensor = _linear(x, weight, bias)
        return out
    return F.linear(x, weight, bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        linear(grad, weight.t()) if of_x else None,
        linear(grad.t(), x.t()) if of_weight else None,
        grad.sum(0) if of_bias else None,
    )


_linear.register_autograd(_backward, setup_context=_save)
register_loop(_linear)
