"""The native searches."""

from __future__ import annotations

from torch import Tensor

from ... import native
from ...native.signatures import EuclideanProblem, SearchProblem, address
from ..euclidean import nearest_euclidean
from ..nearest import fake_search, nearest
from .definition import as_tokens, as_weights, define_native

MOST_K = 32
"""The most neighbours that the native search finds."""


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _search(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, skip: Tensor | None, k: int, stable: bool
) -> Tensor:
    index = fake_search(query, k)
    query, key = as_tokens(query), as_tokens(key)
    bias, masked, skip = as_weights(bias), _contiguous(masked), _contiguous(skip)
    if index.numel():
        problem = SearchProblem(
            batch=query.shape[0], queries=query.shape[1], keys=key.shape[1], channels=query.shape[2], k=k,
            query=query, key=key, bias=bias, masked=masked, skip=skip, index=index,
            query_stride=query.stride(), key_stride=key.stride(),
        )  # fmt: skip
        native.library().convnn_search(address(problem))
    return index


def _search_euclidean(
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
    index = fake_search(query, k)
    tokens = [as_weights(x) for x in (query, key, factor, query_position, key_position)]
    masked, skip = _contiguous(masked), _contiguous(skip)
    if index.numel():
        names = ("query", "key", "factor", "query_position", "key_position")
        problem = EuclideanProblem(
            batch=query.shape[0], queries=query.shape[1], keys=key.shape[1], channels=query.shape[2], k=k,
            axes=0 if query_position is None else query_position.shape[1],
            masked=masked, skip=skip, index=index, **dict(zip(names, tokens, strict=True)),
        )  # fmt: skip
        native.library().convnn_search_euclidean(address(problem))
    return index


native_nearest = define_native(nearest, _search)
native_nearest_euclidean = define_native(nearest_euclidean, _search_euclidean)
