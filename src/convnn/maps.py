"""Feature maps: their padding and their query grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import invalid


@dataclass(frozen=True)
class QueryGrid:
    """Queries at regular positions of the keys' grid: ``offset + stride * i`` for ``i < shape``, per axis.

    >>> QueryGrid((1, 1), (2, 2), (1, 1)).index((4, 4), torch.device("cpu"))
    tensor([ 5,  6,  9, 10])
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def index(self, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the ``(N,)`` flat positions of the queries among the tokens of ``grid``, in raster order."""
        flat = torch.zeros((), dtype=torch.int64, device=device)
        for offset, count, stride, size in zip(self.offset, self.shape, self.stride, grid, strict=True):
            flat = flat.unsqueeze(-1) * size + (offset + stride * torch.arange(count, device=device))
        return flat.flatten()


@dataclass(frozen=True)
class MapGeometry:
    """The map whose tokens are compared: its sizes, its padding and its query grid.

    Attributes:
        sizes: of the map, per axis, without padding.
        padding: tokens that are added on both sides of every axis.
        padding_mode: as in ``nn.Conv*d``.
        grid: the sizes of the padded map.
        queries: the query grid, in the padded map.
        channels_last: whether the channels of a token are adjacent in memory.
    """

    sizes: tuple[int, ...]
    padding: tuple[int, ...]
    padding_mode: str
    grid: tuple[int, ...]
    queries: QueryGrid
    channels_last: bool

    @property
    def queries_are_tokens(self) -> bool:
        """True if every query is a token of the map itself, not of its padding."""
        return all(away >= amount for away, amount in zip(self.queries.offset, self.padding, strict=True))

    def once_padded(self) -> MapGeometry:
        """Return the geometry of the padded map."""
        return replace(self, sizes=self.grid, padding=(0,) * len(self.sizes))


def describe_map(
    sizes: Sequence[int],
    padding: tuple[int, ...],
    offset: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding_mode: str = "zeros",
    channels_last: bool = False,
) -> MapGeometry:
    """Return the geometry of a map of these ``sizes``, with queries every ``stride`` from ``offset`` on both sides.

    Raises ConvNNError for a map that is too small for a single query.

    >>> describe_map((4, 6), (1, 1), (1, 1), stride=(1, 2)).queries
    QueryGrid(offset=(1, 1), shape=(4, 3), stride=(1, 2))
    """
    grid = tuple([size + 2 * amount for size, amount in zip(sizes, padding, strict=True)])
    shape = []
    for size, away, step in zip(grid, offset, stride, strict=True):
        if size <= 2 * away:
            expected = f"more than {2 * away} tokens per axis (padding included), for a margin of {away}"
            raise invalid("input", expected, f"{size} (map {grid})", "enlarge the map or the padding")
        shape.append((size - 2 * away - 1) // step + 1)
    return MapGeometry(
        tuple(sizes), padding, padding_mode, grid, QueryGrid(offset, tuple(shape), stride), channels_last=channels_last
    )
