"""Grids: padding, positions, coordinates and the pixel shuffle, in any number of axes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import invalid
from ..maps import QueryGrid
from ..types import Window


def unravel(index: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Turn flat raster positions ``(...)`` into positions per axis ``(..., dims)``.

    >>> unravel(torch.tensor([0, 5]), (2, 4)).tolist()
    [[0, 0], [1, 1]]
    """
    columns = []
    for size in reversed(grid):
        columns.append(index % size)
        index = torch.div(index, size, rounding_mode="floor")
    return torch.stack(columns[::-1], dim=-1)


def coordinates(grid: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return ``(M, dims)`` coordinates, last axis first (x, y, z), linear from -1 to 1 along each axis.

    >>> coordinates((1, 3), dtype=torch.float32, device=torch.device("cpu"))[:, 0]
    tensor([-1.,  0.,  1.])
    """
    # Not linspace: it would fix the size in a compiled graph.
    exact = torch.promote_types(dtype, torch.float32)
    axes = [(torch.arange(size, dtype=exact, device=device) * 2 / max(size - 1, 1) - 1).to(dtype) for size in grid]
    mesh = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([axis.flatten() for axis in reversed(mesh)], dim=-1)


def with_coordinates(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Append their coordinates to the tokens ``(B, M, C)`` of a grid: ``(B, M, C + dims)``."""
    positions = coordinates(grid, dtype=tokens.dtype, device=tokens.device)
    return torch.cat([tokens, positions.expand(tokens.shape[0], -1, -1)], dim=-1)


def pad_map(x: Tensor, padding: tuple[int, ...], mode: str = "zeros") -> Tensor:
    """Pad the last ``len(padding)`` axes of ``(B, C, *grid)`` on both sides, as nn.Conv's ``padding_mode`` does."""
    if not any(padding):
        return x
    for size, amount in zip(x.shape[2:], padding, strict=True):
        if amount > {"reflect": size - 1, "circular": size}.get(mode, amount):
            expected = f"a map larger than the padding of {amount} (padding_mode={mode!r})"
            raise invalid("padding", expected, f"{size} tokens along an axis", "enlarge the map or lower the padding")
    amounts = [amount for size in reversed(padding) for amount in (size, size)]
    return F.pad(x, amounts, mode="constant" if mode == "zeros" else mode)


def without_padding(index: Tensor, padded: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    """Turn positions on a padded grid into those on the grid itself; -1 in the padding.

    >>> without_padding(torch.tensor([0, 5, 10]), (4, 4), (1, 1)).tolist()
    [-1, 0, 3]
    """
    if not any(padding):
        return index
    position, inside, flat = unravel(index, padded), torch.ones_like(index, dtype=torch.bool), torch.zeros_like(index)
    for axis, (size, amount) in enumerate(zip(padded, padding, strict=True)):
        at = position[:, axis] - amount
        inside &= (at >= 0) & (at < size - 2 * amount)
        flat = flat * (size - 2 * amount) + at
    return flat.masked_fill(~inside, -1)


def to_channels_last(x: Tensor) -> Tensor:
    """Return a map of two or three axes in channels-last layout."""
    if x.dim() == 3:  # padding would undo it
        return x
    # Not contiguous(memory_format=...), which vmap does not know.
    laid_out: Tensor = to_tokens(x).contiguous().transpose(1, 2).unflatten(2, x.shape[2:])
    return laid_out


def to_tokens(x: Tensor) -> Tensor:
    """View a map ``(B, C, *grid)`` as tokens ``(B, N, C)`` in raster order; no copy in either memory format."""
    return x.flatten(2).transpose(1, 2)


def view_map(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """View tokens ``(B, N, C)`` as the map ``(B, C, *grid)`` that they are the tokens of; no copy."""
    x: Tensor = tokens.transpose(1, 2).unflatten(2, grid)
    return x


def to_map(tokens: Tensor, grid: tuple[int, ...], memory_format: torch.memory_format) -> Tensor:
    """Turn tokens ``(B, N, C)`` into a map ``(B, C, *grid)`` in the given memory format."""
    batch, _, channels = tokens.shape
    return lay_out(tokens.transpose(1, 2).reshape(batch, channels, *grid), memory_format)


def whole_window(candidates: object, k: int, dims: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the size and dilation of the window that k spatial neighbours fill completely, or None.

    >>> whole_window("all", 9, 2), whole_window(Window(3, 2), 9, 2), whole_window("all", 5, 2)
    (((3, 3), (1, 1)), ((3, 3), (2, 2)), None)
    """
    if isinstance(candidates, Window):
        size, dilation = candidates.per_axis(dims)
        return (size, dilation) if math.prod(size) == k else None
    side = round(k ** (1 / dims))
    if isinstance(candidates, str) and side**dims == k and side % 2:
        return (side,) * dims, (1,) * dims
    return None


def subsample(x: Tensor, query_grid: QueryGrid) -> Tensor:
    """View the queries' positions of a map ``(B, C, *grid)``."""
    for axis, (offset, count, stride) in enumerate(
        zip(query_grid.offset, query_grid.shape, query_grid.stride, strict=True)
    ):
        x = x.narrow(2 + axis, offset, (count - 1) * stride + 1)
        if stride > 1:
            x = x[(slice(None),) * (2 + axis) + (slice(None, None, stride),)]
    return x


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return the memory format of a layer's output for the map ``x``: channels-last only if ``x`` is just that."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    # Not is_contiguous(memory_format=...), which vmap does not know.
    if channels_last is None or x.is_contiguous() or not x.movedim(1, -1).is_contiguous():
        return torch.contiguous_format
    return channels_last


def lay_out(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return the map in a memory format of ``memory_format_of``; no copy where it has that one."""
    return x.contiguous() if memory_format is torch.contiguous_format else to_channels_last(x)


def match_gradient_layout(x: Tensor) -> Tensor:
    """Return a view of x whose gradient comes back in x's own layout, as a convolution's: channels-last or contiguous.

    The compiler lays gradients out by itself.
    """
    if torch.compiler.is_compiling():
        return x
    view = x.view_as(x)
    if view.requires_grad:
        view.register_hook(Tensor.contiguous if memory_format_of(x) is torch.contiguous_format else to_channels_last)
    return view


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """Fold patches into channels: ``(B, C, *grid)`` to ``(B, C * factor^dims, *(grid / factor))``, as in two axes.

    >>> pixel_unshuffle(torch.arange(4.0).view(1, 1, 4), 2).tolist()
    [[[0.0, 2.0], [1.0, 3.0]]]
    """
    if factor == 1:
        return x
    batch, channels, *grid = x.shape
    dims = len(grid)
    split = [part for size in grid for part in (size // factor, factor)]
    patches = x.reshape(batch, channels, *split)
    order = (0, 1, *range(3, 2 * dims + 2, 2), *range(2, 2 * dims + 2, 2))
    return patches.permute(order).reshape(batch, channels * factor**dims, *(size // factor for size in grid))


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """Spread channels over patches, the inverse of ``pixel_unshuffle``; interleaving in one axis as in two."""
    if factor == 1:
        return x
    batch, channels, *grid = x.shape
    dims = len(grid)
    patches = x.reshape(batch, channels // factor**dims, *[factor] * dims, *grid)
    order = (0, 1, *(axis for i in range(dims) for axis in (2 + dims + i, 2 + i)))
    return patches.permute(order).reshape(batch, channels // factor**dims, *(size * factor for size in grid))
