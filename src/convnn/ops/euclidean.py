"""The exact search by Euclidean distance.

nearest_euclidean   I[b,n] = the k candidates j with the smallest
factor[b]^2 |query[b,n] - key[b,j]|^2 + |query_position[n] - key_position[j]|^2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._precision import wide_dtype
from .nearest import best, fake_search
from .registry import Shape, define
from .tiles import in_tiles

AXES = ("bn", "b", "b", "n", "-", "b", "n")  # of the tensors that the operator takes, as in_tiles has them


def plain_nearest_euclidean(
    query: Tensor,
    key: Tensor,
    factor: Tensor | None,
    query_position: Tensor | None,
    key_position: Tensor | None,
    masked: Tensor | None,
    skip: Tensor | None,
    k: int,
    stable: bool,
) -> Tensor:
    """Find the k keys with the smallest ``factor^2 |query - key|^2 + |query_position - key_position|^2``.

    By differences: their error does not grow with the coordinates, as that of products does.

    Args:
        query: ``(B, N, C)``, float32 or float64.
        key: ``(B, M, C)``.
        factor: ``(B, 1, 1)``, or None for 1.
        query_position: ``(N, dims)``, or None for none.
        key_position: ``(M, dims)``, or None for none.
        masked: ``(B, M)`` boolean, True for keys that may not be chosen, or None.
        skip: ``(N,)``, one more key per query that may not be chosen (-1: none), or None.
        k: how many.
        stable: whether equal distances are taken lowest index first.

    Returns:
        ``(B, N, k)`` int64, nearest first: the order of the exact distances of the given numbers, up to pairs that
        differ by a few roundings of the difference.
    """
    dtype = wide_dtype(query.device)
    distance = squared_distances(query.to(dtype), key.to(dtype))
    if factor is not None and query_position is not None and key_position is not None:
        positions = squared_distances(query_position.to(dtype), key_position.to(dtype))
        distance = distance * factor.to(dtype).square() + positions
    return best(-distance, masked, skip, k, stable)


def squared_distances(query: Tensor, key: Tensor) -> Tensor:
    """Return the squared distances ``(..., n, m)`` of rows ``(..., n, C)`` and ``(..., m, C)`` by differences."""
    return torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist").square()


def _flops(query: Shape, key: Shape, factor: Any, query_position: Shape | None, *_: Any, **__: Any) -> int:
    axes = 0 if query_position is None else query_position[1]
    return 2 * query[0] * query[1] * key[1] * (query[2] + axes)


nearest_euclidean = define(
    plain_nearest_euclidean,
    portable=in_tiles(plain_nearest_euclidean, AXES, lambda query, key, *_: key.shape[1]),
    fake=lambda query, key, factor, query_position, key_position, masked, skip, k, stable: fake_search(query, k),
    flops=_flops,
)
