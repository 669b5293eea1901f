"""Bounded memory: the search in tiles, the aggregation without a k-fold copy; ``O(B N (C + k))`` in all.

Every step is a custom operator that saves tokens and indices only and recomputes the rest in its backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import plan
from ..ops.bags import bag_sum, pair_distance, pair_product
from ..ops.nearest import nearest
from ..ops.slots import slot_mix
from ..ops.softmax import short_softmax
from ..precision import autocast_dtype, search_dtype, without_autocast
from ..stages import select, similarity
from ..types import Gather, Neighbors, Search


def search(problem: Search) -> Neighbors:
    """Find the k neighbours of every query, some queries at a time."""
    if problem.similarity == "spatial":
        return plan.search_spatial(problem)
    with without_autocast(problem.query.device):
        query, key, metric = plan.features(problem)
        own = plan.own_index(problem)
        with torch.no_grad():
            index = _choose(problem, (query, key, metric), plan.table_of(problem, own), own)
        if not problem.need_similarity:
            return plan.unweighted(problem, index)
        embedded = similarity.embed(query, key, metric, problem.scale)
        return plan.in_slot_order(problem, _of_pairs(embedded, index, metric), index)


def _choose(problem: Search, features: tuple[Tensor, Tensor, str], table: plan.Table, own: Tensor | None) -> Tensor:
    query, key, metric = features
    if table.keys is not None and table.keys.dim() == 2:
        ranked = similarity.embed_to_rank(query, key, metric, problem.scale)
        return plan.choose(problem, _window_scores(ranked, table.keys), table, own)
    own = own if problem.include_self else None
    found = _places(problem, features, table.keys, own)
    index = found if table.keys is None else table.keys[found]
    return index if own is None else select.with_self_first(own, index)


def _places(problem: Search, features: tuple[Tensor, Tensor, str], keys: Tensor | None, own: Tensor | None) -> Tensor:
    """Choose among the keys, or among those listed: places ``(B, N, k)``, or one fewer beside the query's own."""
    query, key, metric = features
    key = key if keys is None else key.index_select(1, keys)  # the others are not even looked at
    return _places_among(problem, (query, key, metric), keys, own)


def _places_among(
    problem: Search, features: tuple[Tensor, Tensor, str], keys: Tensor | None, own: Tensor | None
) -> Tensor:
    """Choose as ``_places``, where the features of the keys listed are given by themselves."""
    masked, place = problem.key_padding_mask, own
    if keys is not None:
        masked = None if masked is None else masked[:, keys]
        place = None if own is None else plan.place_among(own, keys, problem.key.shape[1])
    plan.check_counts(problem, keys, place)
    query, key, bias = similarity.embed_to_rank(*features, problem.scale)
    found: Tensor = nearest(query, key, bias, masked, place, problem.k - (own is not None), problem.deterministic)
    return found


def places(problem: Search) -> Tensor:
    """Find the neighbours beside the query itself, as places ``(B, N, k - 1)`` in the list of candidates."""
    with without_autocast(problem.query.device), torch.no_grad():
        own = plan.own_index(problem)
        return _places(problem, plan.features(problem), plan.table_of(problem, own).keys, own)


def places_among(problem: Search, candidates: Tensor) -> Tensor:
    """Find what ``places`` finds, where the candidates' features ``(B, r, C)`` are given by themselves."""
    dtype = search_dtype(problem.query.dtype)
    with without_autocast(problem.query.device), torch.no_grad():
        own = plan.own_index(problem)
        features = problem.query.to(dtype), candidates.to(dtype), str(problem.similarity)
        return _places_among(problem, features, plan.table_of(problem, own).keys, own)


def _window_scores(embedded: similarity.Embedded, keys: Tensor) -> Tensor:
    """Compare every query with its own window ``(N, w)``: ``(B, N, w)``."""
    query, key, bias = embedded
    scores: Tensor = pair_product(query, key, keys.expand(query.shape[0], -1, -1))
    if bias is None:
        return scores
    return (scores + bias[:, keys]).masked_fill(bias[:, keys].isneginf(), -torch.inf)


def _of_pairs(embedded: similarity.Embedded, index: Tensor, metric: str) -> Tensor:
    compare = pair_distance if metric in similarity.EUCLIDEAN else pair_product
    pairs: Tensor = compare(embedded.query, embedded.key, index)
    return similarity.of_distance(pairs, metric) if metric in similarity.EUCLIDEAN else pairs


def gather(problem: Gather, neighbors: Neighbors) -> Tensor:
    """Aggregate the neighbours by weighted sums of rows."""
    rho = plan.rho_of(problem, neighbors.similarity, short_softmax)
    if problem.weight is None:
        value = problem.value
        mixed: Tensor = bag_sum(value, neighbors.index, None if rho is None else rho.to(value.dtype))
    else:
        dtype = autocast_dtype(problem.value)
        value, weight = problem.value.to(dtype), problem.weight.to(dtype)
        mixed = slot_mix(value, weight, neighbors.index, None if rho is None else rho.to(dtype), problem.groups)
    return mixed if problem.bias is None else mixed + problem.bias.to(mixed.dtype)


def aggregate(problem: Search, aggregation: Gather) -> Tensor:
    """Search, then gather."""
    return gather(aggregation, search(problem))
