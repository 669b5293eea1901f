"""The spatial limit of the family, run by the native convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .. import _plan as plan
from ..maps import QueryGrid
from ..stages import geometry
from ..types import Gather, Problem, Search
from .base import Implementation

Window = tuple[tuple[int, ...], tuple[int, ...]]
"""Size and dilation, per axis."""


class Conv(Implementation):
    """The native convolution, where the neighbours are a whole spatial window that is weighted by ones."""

    name = "conv"
    reason = "this is a convolution, which has a native kernel"

    def why_not(self, problem: Problem) -> str | None:
        """Return why this is not a convolution, or None."""
        search, gather = problem
        if search is None or gather is None:
            return "it is known only where search and aggregation are one call"
        if search.similarity != "spatial":
            return "the similarity is not spatial"
        if gather.weighting != "ones" or gather.dropout_p or gather.weight is None:
            return "a convolution weights its neighbours by ones and has slot weights"
        if search.include_self or search.key_padding_mask is not None:
            return "include_self and key_padding_mask change the slots"
        if not isinstance(search.query_index, QueryGrid):
            return "the queries are not known to form a query grid"
        if len(search.grid) > 3:
            return "there are convolutions of up to 3 axes"
        window = geometry.whole_window(search.candidates, search.k, len(search.grid))
        if window is None:
            return "the neighbours are not one whole window"
        return None if _fits(search, search.query_index, *window) else "at the border the window is not whole"

    def why_not_map(self, problem: Problem) -> str | None:
        """Return None: a convolution takes maps."""
        return None

    def aggregate(self, search: Search, gather: Gather) -> Tensor:
        """Run the convolution on the map that the tokens ``(B, M, C)`` are a view of."""
        window = _window(search)
        return geometry.to_tokens(_convolve(search, gather, _covered(search, gather, search.grid, window), window))

    def aggregate_map(self, search: Search, gather: Gather) -> Tensor:
        """Run the convolution on the map, with its own padding if that is the map's."""
        described, window = search.geometry, _window(search)
        if described is None:
            raise TypeError("geometry")
        radius = tuple(size // 2 * dilation for size, dilation in zip(*window, strict=True))
        zeros = described.padding_mode == "zeros" or not any(described.padding)
        if zeros and radius == described.queries.offset:
            x = geometry.view_map(gather.value, described.sizes) if gather.source is None else gather.source
            return _convolve(search, gather, x, window, described.padding)
        search, gather = plan.with_padding(search, gather)
        return _convolve(search, gather, _covered(search, gather, described.grid, window), window)


def _fits(problem: Search, queries: QueryGrid, size: tuple[int, ...], dilation: tuple[int, ...]) -> bool:
    for axis, length in enumerate(problem.grid):
        radius = size[axis] // 2 * dilation[axis]
        last = queries.offset[axis] + (queries.shape[axis] - 1) * queries.stride[axis]
        if queries.offset[axis] < radius or last + radius > length - 1:
            return False
    return True


def _window(problem: Search) -> Window:
    window = geometry.whole_window(problem.candidates, problem.k, len(problem.grid))
    if window is None:
        raise TypeError("candidates")
    return window


def _covered(problem: Search, aggregation: Gather, grid: tuple[int, ...], window: Window) -> Tensor:
    """View the part of the map ``(B, C, *grid)`` that the windows around the queries cover."""
    x, queries = geometry.view_map(aggregation.value, grid), problem.query_index
    if not isinstance(queries, QueryGrid):
        raise TypeError("query_index")
    for axis, (size, dilation) in enumerate(zip(*window, strict=True)):
        radius = size // 2 * dilation
        reach = (queries.shape[axis] - 1) * queries.stride[axis] + 2 * radius + 1
        x = x.narrow(2 + axis, queries.offset[axis] - radius, reach)
    return x


def _convolve(
    problem: Search, aggregation: Gather, x: Tensor, window: Window, padding: tuple[int, ...] | None = None
) -> Tensor:
    """Run the native kernel on a map, with the slots ``(C_out, C_in/groups, k)`` as its weight."""
    (size, dilation), queries, weight = window, problem.query_index, aggregation.weight
    if weight is None or not isinstance(queries, QueryGrid):
        raise TypeError("weight")
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    out: Tensor = convolution(
        x, weight.unflatten(2, size), aggregation.bias, stride=queries.stride, dilation=dilation,
        padding=(0,) * len(size) if padding is None else padding, groups=aggregation.groups,
    )  # fmt: skip
    return out
