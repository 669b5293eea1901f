"""Similarities: each as an inner product of embedded queries and keys plus a bias per key.

A search only ever has to find the largest ``<q', k'> + bias``; the values of the k selected pairs are then computed
directly, which is exact (no cancellation) and is the only road for gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EUCLIDEAN = ("sqeuclidean", "euclidean")


class Embedded(NamedTuple):
    """Queries ``(B, N, C)`` and keys ``(B, M, C)`` in which the ranking is ``<query, key> + bias``; bias ``(B, M)``."""

    query: Tensor
    key: Tensor
    bias: Tensor | None


def normalize(x: Tensor) -> Tensor:
    """Scale vectors ``(..., C)`` to unit length; a zero vector stays zero, with gradient zero."""
    # Divided by their largest entry first (which changes nothing else), so that no square under- or overflows.
    largest = x.detach().abs().amax(-1, keepdim=True)
    is_zero = largest == 0
    scaled = x / largest.masked_fill(is_zero, 1)
    unit: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).masked_fill(is_zero, 1)
    return unit.masked_fill(is_zero, 0)


def embed(query: Tensor, key: Tensor, metric: str, scale: float) -> Embedded:
    """Embed queries and keys such that ``of_pairs`` is their similarity.

    ``metric`` is one of ``cosine``, ``dot``, ``sqeuclidean``, ``euclidean``.
    """
    if metric == "cosine":
        return Embedded(normalize(query), normalize(key), None)
    if metric == "dot":
        return Embedded(query * scale, key, None)
    # Distances do not change when both sides move; about the keys' middle, |q|^2 + |k|^2 - 2<q,k> cancels least.
    centre = _coarse_centre(key.detach())
    query, key = query - centre, key - centre
    return Embedded(query, key, key.square().sum(-1) * -0.5)


def embed_to_rank(query: Tensor, key: Tensor, metric: str, scale: float) -> Embedded:
    """Embed queries and keys such that ``<query, key> + bias`` ranks keys as their similarity does, at less cost.

    A positive factor on a query ranks its keys alike: its length and a positive scale can be left out.
    """
    if metric == "cosine":
        return Embedded(query, normalize(key), None)
    if metric == "dot" and scale > 0:
        return Embedded(query, key, None)
    return embed(query, key, metric, scale)


def _coarse_centre(key: Tensor) -> Tensor:
    """Return about the middle of most keys, ``(B, 1, C)``: the median of 64 of them, to an eighth of its scale.

    A median, because one far key must not move it. Rounded, because whole numbers then stay short numbers, and equal
    distances between them are computed as equal. Where it is not finite it is 0.
    """
    # Not a slice with this step: it would fix the step in a compiled graph.
    some = key.index_select(1, torch.arange(0, key.shape[1], max(key.shape[1] // 64, 1), device=key.device))
    median = some.median(dim=1, keepdim=True).values
    scale = some.abs().median(dim=1, keepdim=True).values.amax(dim=2, keepdim=True)
    grain = torch.exp2(scale.log2().floor() - 3)
    centre = (median / grain).round() * grain
    return torch.where(centre.isfinite(), centre, torch.zeros_like(centre))


def of_pairs(query: Tensor, key: Tensor, metric: str) -> Tensor:
    """Return the similarity of embedded vectors, pair by pair: ``(..., C)`` and ``(..., C)`` to ``(...)``."""
    if metric not in EUCLIDEAN:
        return (query * key).sum(-1)
    return of_distance((query - key).square().sum(-1), metric)


def of_distance(squared: Tensor, metric: str) -> Tensor:
    """Turn squared distances into ``sqeuclidean`` or ``euclidean`` similarities."""
    if metric == "sqeuclidean":
        return -squared
    # The derivative of a distance at 0 is not defined; 0 is the one that is no NaN and no preference.
    same = squared == 0
    return -squared.masked_fill(same, 1).sqrt().masked_fill(same, 0)


def blend(x: Tensor, spread: Tensor, coordinates: Tensor, lam: float) -> Tensor:
    """Return ``[lam * x / spread, (1 - lam) * p]``, ``(B, N, C + dims)``: x ``(B, N, C)``, spread ``(B, 1, 1)``."""
    place = (coordinates * (1 - lam)).expand(x.shape[0], -1, -1)
    return torch.cat([x * (lam / spread), place], dim=-1)


def feature_spread(key: Tensor) -> Tensor:
    """Return ``(B, 1, 1)``: the unbiased standard deviation of a sample's features plus 1e-6 (0 if it has only one)."""
    if key.shape[1] * key.shape[2] < 2 or key.shape[0] == 0:
        return torch.full_like(key[:, :1, :1], 1e-6)
    return key.std(dim=(1, 2), keepdim=True) + 1e-6


def spatial(query_positions: Tensor, key_positions: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Compare grid positions: ``(..., dims)`` and ``(..., dims)`` to the Chebyshev distance and a ranking, ``(...)``.

    The ranking is an integer that orders by Chebyshev, then Euclidean distance; smaller is nearer.
    """
    offset = (key_positions - query_positions).abs()
    chebyshev = offset.amax(-1)
    farthest = sum(size * size for size in grid)
    return chebyshev, chebyshev * (farthest + 1) + offset.square().sum(-1)
