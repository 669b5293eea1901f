"""Plain forms in bounded memory: on some samples and some queries at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, cast

from torch import Tensor

# Numbers held at a time: 16 MiB of float64. A device is busy with so many, and has memory for several times as many.
TILE_NUMBERS = 1 << 21

P = ParamSpec("P")


def tiles(batch: int, queries: int, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Divide a batch into tiles, as slices of samples and of queries, where one query needs so many ``numbers``.

    >>> [(s.start, s.stop, q.start, q.stop) for s, q in tiles(2, 3, TILE_NUMBERS // 2)]
    [(0, 1, 0, 2), (0, 1, 2, 4), (1, 2, 0, 2), (1, 2, 2, 4)]
    """
    height = min(max(1, TILE_NUMBERS // max(1, numbers)), max(1, queries))
    samples = max(1, TILE_NUMBERS // max(1, height * numbers)) if height >= queries else 1
    for sample, query in itertools.product(range(0, batch, samples), range(0, queries, height)):
        yield slice(sample, sample + samples), slice(query, query + height)


def in_tiles(plain: Callable[P, Tensor], axes: Sequence[str], numbers: Callable[..., int]) -> Callable[P, Tensor]:
    """Return a function that computes a plain form tile by tile.

    ``axes`` has a word per tensor argument: ``bn`` for ``(B, N, ...)``, ``b`` for ``(B, ...)``, ``n`` for ``(N, ...)``,
    ``-`` for one without these axes. ``numbers`` is how many numbers the plain form holds per query.
    """
    compute = cast(Callable[..., Tensor], plain)
    first = axes.index("bn")

    @functools.wraps(plain)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        batch, queries = cast(Tensor, args[first]).shape[:2]
        out: Tensor | None = None
        for tile in tiles(batch, queries, numbers(*args, **kwargs)):
            parts = [cut(x, word, tile) for x, word in zip(args, axes, strict=False)]
            part = compute(*parts, *args[len(axes) :])
            # Copied at once: small results between the large tensors of the tiles would keep their memory from being
            # used again.
            out = part.new_empty(batch, queries, *part.shape[2:]) if out is None else out
            out[tile] = part
        return plain(*args, **kwargs) if out is None else out

    return run


def cut(x: Any, word: str, tile: tuple[slice, slice | Tensor]) -> Any:
    """Return the part of an argument that belongs to some samples and queries, its axes given as in ``in_tiles``."""
    if x is None or word == "-":
        return x
    return x[{"bn": tile, "b": tile[0], "n": tile[1]}[word]]
