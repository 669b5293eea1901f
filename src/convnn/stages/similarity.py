"""Similarities: inner products of embedded queries and keys, or distances.

A search by cosine or dot product only has to find the largest ``<q', k'>``. Euclidean similarities are compared by
differences wherever the rounding of products could change the order. The similarities of the k selected pairs are
computed pair by pair, which is where gradients flow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EUCLIDEAN = ("sqeuclidean", "euclidean")


class Compared(NamedTuple):
    """Queries and keys to compare, in the precision of the search.

    Attributes:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        metric: ``cosine``, ``dot``, ``sqeuclidean`` or ``euclidean``.
        factor: ``(B, 1, 1)``, the scale of the features in a Euclidean blend; None for 1.
        query_position: ``(N, dims)``, their scaled coordinates in a Euclidean blend; None for none.
        key_position: ``(M, dims)``, those of the keys.
    """

    query: Tensor
    key: Tensor
    metric: str
    factor: Tensor | None = None
    query_position: Tensor | None = None
    key_position: Tensor | None = None


class Embedded(NamedTuple):
    """Queries ``(B, N, C)`` and keys ``(B, M, C)`` in which the ranking is ``<query, key>``."""

    query: Tensor
    key: Tensor


def normalize(x: Tensor) -> Tensor:
    """Scale vectors ``(..., C)`` to unit length; a zero vector stays zero, with gradient zero."""
    # Divide by the largest entry first, so that no square under- or overflows.
    largest = x.detach().abs().amax(-1, keepdim=True)
    is_zero = largest == 0
    scaled = x / largest.masked_fill(is_zero, 1)
    unit: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).masked_fill(is_zero, 1)
    return unit.masked_fill(is_zero, 0)


def embed(query: Tensor, key: Tensor, metric: str, scale: float) -> Embedded:
    """Embed queries and keys such that ``<query, key>`` is their similarity, ``cosine`` or ``dot``."""
    if metric == "cosine":
        return Embedded(normalize(query), normalize(key))
    return Embedded(query * scale, key)


def embed_to_rank(query: Tensor, key: Tensor, metric: str, scale: float) -> Embedded:
    """Embed queries and keys such that ``<query, key>`` ranks keys as their similarity does, at less cost.

    A positive factor on a query ranks its keys alike: its length and a positive scale can be left out.
    """
    if metric == "cosine":
        return Embedded(query, normalize(key))
    return Embedded(query, key) if scale > 0 else embed(query, key, metric, scale)


def pairwise(
    compared: Compared,
    index: Tensor,
    scale: float,
    *,
    product: Callable[[Tensor, Tensor, Tensor], Tensor],
    distance: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the similarities ``(B, N, k)`` of the queries with the keys at ``index`` ``(B, N, k)``.

    ``product`` and ``distance`` compute the inner products and the squared distances of such pairs, from queries
    ``(B, N, C)``, keys ``(B, M, C)`` and the index.
    """
    if compared.metric in EUCLIDEAN:
        return from_distance(squared_distances(compared, index, distance), compared.metric)
    embedded = embed(compared.query, compared.key, compared.metric, scale)
    return product(embedded.query, embedded.key, index)


def squared_distances(
    compared: Compared, index: Tensor, distance: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Return the squared distances ``(B, N, k)`` of Euclidean similarities, by differences."""
    squared = distance(compared.query, compared.key, index)
    if compared.factor is None or compared.query_position is None or compared.key_position is None:
        return squared
    # Features and coordinates apart: scaling or joining them first would round coordinates, not differences.
    positions = (compared.query_position, compared.key_position)
    query_position, key_position = (x.expand(index.shape[0], -1, -1) for x in positions)
    return squared * compared.factor.square() + distance(query_position, key_position, index).to(squared.dtype)


def from_distance(squared: Tensor, metric: str) -> Tensor:
    """Turn squared distances into ``sqeuclidean`` or ``euclidean`` similarities."""
    if metric == "sqeuclidean":
        return -squared
    # The derivative of a distance at 0 is not defined; 0 is neither NaN nor a preferred direction.
    same = squared == 0
    return -squared.masked_fill(same, 1).sqrt().masked_fill(same, 0)


def blend(x: Tensor, spread: Tensor, coordinates: Tensor, lam: float) -> Tensor:
    """Return ``[lam * x / spread, (1 - lam) * p]``, ``(B, N, C + dims)``: x ``(B, N, C)``, spread ``(B, 1, 1)``."""
    scaled = (coordinates * (1 - lam)).expand(x.shape[0], -1, -1)
    return torch.cat([x * (lam / spread), scaled], dim=-1)


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
