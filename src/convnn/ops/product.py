"""Products of matrices by the fastest road that PyTorch has on the device."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight

from .owned import owned
from .transforms import register_gradient

# From this many multiply-adds on, oneDNN's set-up costs less than it saves.
_WORTH_ONEDNN = 1 << 18
# Below this many multiply-adds a sample, one call for all of them is faster than the faster product for each.
_SMALL_SAMPLE = 1 << 22
# As how many images a product of columns is written: their rows are what threads part between them.
_IMAGES = 8
# Where vectors are shorter, oneDNN has no lead over the BLAS library, and is far behind it with columns.
_WIDE_VECTORS = torch.backends.cpu.get_cpu_capability() == "AVX512"


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


def _onednn_leads(x: Tensor, y: Tensor) -> bool:
    """Whether oneDNN is so much faster than the BLAS library that a detour to it pays."""
    return _WIDE_VECTORS and _goes_to_onednn(x, y)


def _onednn_is_on() -> bool:
    """Whether ``torch.backends.mkldnn.flags`` leaves oneDNN on."""
    return bool(torch._C._get_mkldnn_enabled())


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


def one_by_one(x: Tensor, y: Tensor) -> bool:
    """Whether samples ``(B, n, c)`` and ``(B, m, c)`` are multiplied faster by ``product`` than all in one call.

    >>> one_by_one(torch.ones(2, 3, 4), torch.ones(2, 5, 4))
    False
    """
    return x[0].numel() * y.shape[1] >= _SMALL_SAMPLE and _onednn_leads(x[0], y[0])


def column_product(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of columns: ``(n, c)`` and ``(n, m)`` to ``(c, m)``; no gradient.

    >>> column_product(torch.eye(2), torch.tensor([[1.0], [2.0]])).flatten()
    tensor([1., 2.])
    """
    if not _onednn_leads(x.t(), y.t()):
        return F.linear(x.t(), y.t())
    if torch.get_num_threads() > 1 and min(x.shape[1], y.shape[1]) <= x.shape[0]:
        # The gradient of a 1x1 convolution's weight: oneDNN reads both as they lie, where a product transposes one.
        images = math.gcd(x.shape[0], _IMAGES)
        image, gradient = (t.contiguous().view(images, -1, 1, t.shape[1]).permute(0, 3, 1, 2) for t in (y, x))
        out: Tensor = conv2d_weight(image, (x.shape[1], y.shape[1], 1, 1), gradient)
        return out[:, :, 0, 0]
    return product(x.t(), y.t())


def map_product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a matrix ``(m, c)`` to the tokens of maps: ``(B, c, n)`` to ``(B, m, n)``, plus bias ``(m,)``; no gradient.

    >>> map_product(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[1.0, 1.0]])).flatten()
    tensor([3.])
    """
    if _onednn_leads(_one_map(x), matrix):
        return F.conv1d(x, matrix.unsqueeze(2), bias)
    out = torch.bmm(matrix.expand(x.shape[0], -1, -1), x)  # matmul would lay the maps out anew
    return out if bias is None else out.add_(bias.unsqueeze(1))


def _one_map(x: Tensor) -> Tensor:
    """View the tokens ``(n, c)`` of the first of maps ``(B, c, n)``; none of no maps."""
    return x[:1].flatten(0, 1).t()


def map_column_product(x: Tensor, y: Tensor) -> Tensor:
    """Sum the products of two maps over all tokens: ``(B, c, n)`` and ``(B, m, n)`` to ``(c, m)``; no gradient.

    >>> map_column_product(torch.ones(2, 1, 3), torch.ones(2, 1, 3))
    tensor([[6.]])
    """
    if _onednn_leads(_one_map(x).t(), _one_map(y).t()):
        out: Tensor = conv1d_weight(y, (x.shape[1], y.shape[1], 1), x)
        return out[:, :, 0]
    return torch.bmm(x, y.transpose(1, 2)).sum(0)


@torch.library.custom_op("convnn::linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return owned(product(x, weight, bias))


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply ``F.linear`` to rows ``(n, c)`` by the fastest road, differentiable to any order."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
        out: Tensor = _linear(x, weight, bias)
        return out
    return F.linear(x, weight, bias)


@torch.library.custom_op("convnn::columns", mutates_args=())
def _columns(x: Tensor, y: Tensor) -> Tensor:
    return owned(column_product(x, y).contiguous())


@_columns.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], y.shape[1])


def columns(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x.t() @ y`` of rows ``(n, c)`` and ``(n, m)`` by the fastest road, differentiable to any order."""
    if x.device.type == "cpu" and x.dtype == y.dtype == torch.float32:
        out: Tensor = _columns(x, y)
        return out
    return x.t() @ y


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        linear(grad, weight.t()) if of_x else None,
        columns(grad, x) if of_weight else None,
        grad.sum(0) if of_bias else None,
    )


def _save_columns(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _columns_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, y = ctx.saved_tensors
    of_x, of_y = ctx.needs_input_grad
    return linear(y, grad) if of_x else None, linear(x, grad.t()) if of_y else None


register_gradient(_linear, _linear_backward, _save_linear)
register_gradient(_columns, _columns_backward, _save_columns)
