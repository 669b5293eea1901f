"""The two ends of the family, handed to the kernels that already exist for them: convolution and attention."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..stages.geometry import whole_window
from ..types import Gather, Lattice, Search


def cannot_convolve(problem: Search, aggregation: Gather) -> str | None:
    """Say why this is not a convolution, or return None: a whole spatial window on a lattice, weighted by ones."""
    if problem.similarity != "spatial":
        return "the similarity is not spatial"
    if aggregation.weighting != "ones" or aggregation.dropout_p or aggregation.weight is None:
        return "a convolution weights its neighbours by ones and has slot weights"
    if problem.include_self or problem.key_padding_mask is not None:
        return "include_self and key_padding_mask change the slots"
    if not isinstance(problem.query_index, Lattice):
        return "the queries are not known to stand on a lattice"
    if len(problem.grid) > 3:
        return "there are convolutions of up to 3 axes"
    kernel = whole_window(problem.candidates, problem.k, len(problem.grid))
    if kernel is None:
        return "the neighbours are not one whole window"
    return None if _fits(problem, problem.query_index, *kernel) else "at the border the window is not whole"


def _fits(problem: Search, lattice: Lattice, size: tuple[int, ...], dilation: tuple[int, ...]) -> bool:
    for axis, length in enumerate(problem.grid):
        radius = size[axis] // 2 * dilation[axis]
        last = lattice.origin[axis] + (lattice.shape[axis] - 1) * lattice.stride[axis]
        if lattice.origin[axis] < radius or last + radius > length - 1:
            return False
    return True


def convolve(problem: Search, aggregation: Gather) -> Tensor:
    """Run the native convolution on the map that the tokens ``(B, M, C)`` are a view of."""
    kernel, lattice = whole_window(problem.candidates, problem.k, len(problem.grid)), problem.query_index
    if kernel is None or not isinstance(lattice, Lattice) or aggregation.weight is None:
        raise ValueError(cannot_convolve(problem, aggregation))
    size, dilation = kernel
    value = aggregation.value.transpose(1, 2).unflatten(2, problem.grid)
    for axis in range(len(size)):
        radius = size[axis] // 2 * dilation[axis]
        reach = (lattice.shape[axis] - 1) * lattice.stride[axis] + 2 * radius + 1
        value = value.narrow(2 + axis, lattice.origin[axis] - radius, reach)
    geometry: dict[str, Any] = {
        "size": size,
        "stride": lattice.stride,
        "dilation": dilation,
        "groups": aggregation.groups,
    }
    return convolve_map(value, aggregation.weight, aggregation.bias, **geometry).flatten(2).transpose(1, 2)


def convolve_map(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, size: tuple[int, ...], padding: Any = 0, **geometry: Any
) -> Tensor:
    """Run the native convolution of a map ``(B, C, *grid)``, with slots ``(C_out, C_in/groups, k)`` as its kernel."""
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    out: Tensor = convolution(x, weight.unflatten(2, size), bias, padding=padding, **geometry)
    return out


def cannot_attend(problem: Search, aggregation: Gather) -> str | None:
    """Say why this is not attention, or return None: dot, every key, softmax, unit weights."""
    if problem.similarity != "dot":
        return "the similarity is not dot"
    if not isinstance(problem.candidates, str) or not (problem.every or problem.k == problem.key.shape[1]):
        return "not every key is a neighbour (k < N)"
    if problem.key_padding_mask is not None and not problem.every:
        return "a mask leaves fewer than k = N keys"
    if aggregation.weighting != "softmax" or aggregation.weight is not None:
        return "attention weights by softmax and has unit slot weights"
    return None


def attend(problem: Search, aggregation: Gather, *, own: bool) -> Tensor:
    """Run the native scaled dot-product attention; ``own``: return no tensor that its backward pass reads."""
    mask = problem.key_padding_mask
    # With an axis of one head: torch's fused kernels take four axes only.
    query, key, value = (x.unsqueeze(1) for x in (problem.query, problem.key, aggregation.value))
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if mask is None else ~mask[:, None, None, :],
        dropout_p=aggregation.dropout_p,
        scale=problem.scale / aggregation.temperature,
    ).squeeze(1)
    if aggregation.bias is not None:
        return out + aggregation.bias.to(out.dtype)
    return out.clone() if own and out.requires_grad else out
