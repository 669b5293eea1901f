"""Matrix products by the faster of oneDNN and the BLAS library."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv1d_weight, conv2d_weight

from ..linear import columns, linear
from ..registry import kernel

# From this many multiply-adds on, oneDNN's set-up costs less than it saves.
_WORTH_ONEDNN = 1 << 18
# Below this many multiply-adds a sample, one call for all of them is faster than the faster product for each.
_SMALL_SAMPLE = 1 << 22
# As how many images a product of columns is written: their rows are what threads part between them.
_IMAGES = 8
# Where vectors are shorter, oneDNN has no lead over the BLAS library, and is far behind it with columns.
_WIDE_VECTORS = torch.backends.cpu.get_cpu_capability() == "AVX512"
_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# The private oneDNN linear operator, or None if this PyTorch build does not have it.
_inner_product: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


@kernel(linear, "cpu")
def product(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the inner products of rows: ``(n, c)`` and ``(m, c)`` to ``(n, m)``, plus bias ``(m,)``; no gradient.

    For use inside kernels; autograd knows the operator ``linear``.

    >>> product(torch.eye(2), torch.tensor([[1.0, 2.0]])).flatten()
    tensor([1., 2.])
    """
    if _suits_onednn(x, y):
        # Rows that are neither contiguous nor a transpose would run in its slow reference code.
        out: Tensor = _inner_product(_dense(x), _dense(y), bias, "none", [], "")
        return out
    return F.linear(x, y, bias)


def _suits_onednn(x: Tensor, y: Tensor) -> bool:
    """Return True where torch.mm would run in the BLAS library, which on some processors takes twice oneDNN's time."""
    known = x.dtype == y.dtype == torch.float32 and _inner_product is not None and _HAS_ONEDNN
    enabled = known and bool(torch._C._get_mkldnn_enabled())  # as torch.backends.mkldnn.flags leaves it
    return enabled and x.shape[0] * y.shape[0] * x.shape[1] >= _WORTH_ONEDNN


def _onednn_leads(x: Tensor, y: Tensor) -> bool:
    """Return True where oneDNN is so much faster than the BLAS library that a copy for its sake pays."""
    return _WIDE_VECTORS and _suits_onednn(x, y)


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()


def one_by_one(x: Tensor, y: Tensor) -> bool:
    """Return True if samples ``(B, n, c)`` and ``(B, m, c)`` are multiplied faster by ``product`` than in one call."""
    return x[0].numel() * y.shape[1] >= _SMALL_SAMPLE and _onednn_leads(x[0], y[0])


def column_product(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products of columns: ``(n, c)`` and ``(n, m)`` to ``(c, m)``; no gradient."""
    if not _onednn_leads(x.t(), y.t()):
        return F.linear(x.t(), y.t())
    if torch.get_num_threads() > 1 and min(x.shape[1], y.shape[1]) <= x.shape[0]:
        # The gradient of a 1x1 convolution's weight: oneDNN reads both as they are stored; a product transposes one.
        images = math.gcd(x.shape[0], _IMAGES)
        image, gradient = (t.contiguous().view(images, -1, 1, t.shape[1]).permute(0, 3, 1, 2) for t in (y, x))
        out: Tensor = conv2d_weight(image, (x.shape[1], y.shape[1], 1, 1), gradient)
        return out[:, :, 0, 0]
    return product(x.t(), y.t())


def map_product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a matrix ``(m, c)`` to the tokens of maps: ``(B, c, n)`` to ``(B, m, n)``, plus bias ``(m,)``."""
    if _onednn_leads(_one_map(x), matrix):
        return F.conv1d(x, matrix.unsqueeze(2), bias)
    out = torch.bmm(matrix.expand(x.shape[0], -1, -1), x)  # matmul would copy the maps
    return out if bias is None else out.add_(bias.unsqueeze(1))


def _one_map(x: Tensor) -> Tensor:
    """View the tokens ``(n, c)`` of the first of maps ``(B, c, n)``; none of no maps."""
    return x[:1].flatten(0, 1).t()


def map_column_product(x: Tensor, y: Tensor) -> Tensor:
    """Sum the products of two maps over all tokens: ``(B, c, n)`` and ``(B, m, n)`` to ``(c, m)``; no gradient."""
    if _onednn_leads(_one_map(x).t(), _one_map(y).t()):
        out: Tensor = conv1d_weight(y, (x.shape[1], y.shape[1], 1), x)
        return out[:, :, 0]
    return torch.bmm(x, y.transpose(1, 2)).sum(0)


@kernel(columns, "cpu")
def _(x: Tensor, y: Tensor) -> Tensor:
    return column_product(x, y).contiguous()
