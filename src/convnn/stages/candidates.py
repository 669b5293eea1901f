"""Candidate sets: which keys each query may choose from, as positions in raster order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import invalid


def grid_positions(g: int, margin: int, grid: tuple[int, ...], *, device: torch.device) -> Tensor:
    """Return the ``(g^dims,)`` flat positions of a regular sub-grid; ``g`` is at most the smallest axis.

    Per axis ``floor(linspace(margin, size - 1 - margin, g))``, in whole numbers, so that no rounding moves a candidate.

    >>> grid_positions(3, 0, (7,), device=torch.device("cpu"))
    tensor([0, 3, 6])
    """
    flat = torch.zeros((), dtype=torch.int64, device=device)
    for size in grid:
        span = size - 1 - 2 * margin
        if span < g - 1:
            most = (size - g) // 2
            expected = f"at most {most} ({g} candidates on {size} tokens)"
            raise invalid("Grid.margin", expected, margin, "lower the margin")
        axis = margin + torch.arange(g, device=device) * span // max(g - 1, 1)
        flat = flat.unsqueeze(-1) * size + axis
    return flat.flatten()


def window_offsets(size: tuple[int, ...], dilation: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the ``(prod(size), dims)`` offsets of a window from its centre, in raster order."""
    axes = [(torch.arange(s, device=device) - s // 2) * d for s, d in zip(size, dilation, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def clipped_window(offsets: Tensor, positions: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Add offsets ``(w, dims)`` to positions ``(N, dims)``: flat positions and which exist, both ``(N, w)``."""
    shifted = positions.unsqueeze(1) + offsets
    exists = torch.ones((), dtype=torch.bool, device=positions.device)
    flat = torch.zeros((), dtype=torch.int64, device=positions.device)
    for axis, size in enumerate(grid):
        along = shifted[..., axis]
        exists = exists & (along >= 0) & (along < size)
        flat = flat * size + along.clamp(0, size - 1)
    return flat, exists


def shifted_window(
    size: tuple[int, ...], dilation: tuple[int, ...], positions: Tensor, *, grid: tuple[int, ...]
) -> Tensor:
    """Return ``(N, prod(size))`` flat positions of windows that are moved inside the grid at its borders.

    With a dilation, a window moves among the tokens of its own residue class, as in dilated neighbourhood attention.
    """
    flat = torch.zeros(positions.shape[0], 1, dtype=torch.int64, device=positions.device)
    for axis, (s, d, length) in enumerate(zip(size, dilation, grid, strict=True)):
        if s * d > length:
            fix = "lower the size or the dilation, or use border='clip'"
            raise invalid("Window.size", f"size * dilation of at most {length} (axis {axis} of the grid)", s * d, fix)
        residue, step = positions[:, axis] % d, positions[:, axis] // d
        steps = (length - residue + d - 1) // d
        start = (step - s // 2).clamp(min=0).minimum(steps - s)
        along = residue.unsqueeze(1) + d * (start.unsqueeze(1) + torch.arange(s, device=positions.device))
        flat = (flat.unsqueeze(-1) * length + along.unsqueeze(1)).flatten(1)
    return flat


def nearest_radius(k: int, grid: tuple[int, ...]) -> int:
    """Return the smallest Chebyshev radius within which every token of the grid has k tokens, itself included.

    The worst position is a corner, which sees ``radius + 1`` tokens along each axis.
    """
    radius = max(math.ceil(k ** (1 / len(grid))) - 2, 0)
    while True:
        if math.prod([min(radius + 1, size) for size in grid]) >= k:
            return int(radius)
        radius += 1
