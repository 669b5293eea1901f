"""Bounded memory: the search in tiles, the aggregation without a k-fold copy; ``O(B N (C + k))`` in all.

Every step is a custom operator that saves tokens and indices only and recomputes the rest in its backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import plan
from ..ops.bags import bag_sum, pair_distance, pair_product
from ..ops.euclidean import nearest_euclidean
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
        compared = plan.compared(problem)
        own = plan.own_index(problem)
        with torch.no_grad():
            index = _choose(problem, compared, plan.table_of(problem, own), own)
        if not problem.need_similarity:
            return plan.unweighted(problem, index)
        pairs = similarity.of_pairs(compared, index, problem.scale, product=pair_product, distance=pair_distance)
        return plan.in_slot_order(problem, pairs, index)


def _choose(problem: Search, compared: similarity.Compared, table: plan.Table, own: Tensor | None) -> Tensor:
    if table.keys is not None and table.keys.dim() == 2:
        return plan.choose(problem, _window_scores(problem, compared, table.keys), table, own)
    own = own if problem.include_self else None
    found = _places(problem, compared, table.keys, own)
    index = found if table.keys is None else table.keys[found]
    return index if own is None else select.with_self_first(own, index)


def _places(problem: Search, compared: similarity.Compared, keys: Tensor | None, own: Tensor | None) -> Tensor:
    """Choose among the keys, or among those listed: places ``(B, N, k)``, or one fewer beside the query's own."""
    if keys is not None:  # the others are not even looked at
        places = compared.key_position
        compared = compared._replace(
            key=compared.key.index_select(1, keys), key_position=None if places is None else places[keys]
        )
    return _places_among(problem, compared, keys, own)


def _places_among(problem: Search, compared: similarity.Compared, keys: Tensor | None, own: Tensor | None) -> Tensor:
    """Choose as ``_places``, where the features of the keys listed are given by themselves."""
    masked, place = problem.key_padding_mask, own
    if keys is not None:
        masked = None if masked is None else masked[:, keys]
        place = None if own is None else plan.place_among(own, keys, problem.key.shape[1])
    plan.check_counts(problem, keys, place)
    count = problem.k - (own is not None)
    found: Tensor
    if compared.metric in similarity.EUCLIDEAN:
        query, key, _, *blend = compared
        found = nearest_euclidean(query, key, *blend, masked, place, count, problem.deterministic)
    else:
        query, key = similarity.embed_to_rank(compared.query, compared.key, compared.metric, problem.scale)
        found = nearest(query, key, None, masked, place, count, problem.deterministic)
    return found


def places(problem: Search) -> Tensor:
    """Find the neighbours beside the query itself, as places ``(B, N, k - 1)`` in the list of candidates."""
    with without_autocast(problem.query.device), torch.no_grad():
        own = plan.own_index(problem)
        return _places(problem, plan.compared(problem), plan.table_of(problem, own).keys, own)


def places_among(problem: Search, candidates: Tensor) -> Tensor:
    """Find what ``places`` finds, where the candidates' features ``(B, r, C)`` are given by themselves."""
    dtype = search_dtype(problem.query.dtype)
    with without_autocast(problem.query.device), torch.no_grad():
        own = plan.own_index(problem)
        compared = similarity.Compared(problem.query.to(dtype), candidates.to(dtype), str(problem.similarity))
        return _places_among(problem, compared, plan.table_of(problem, own).keys, own)


def _window_scores(problem: Search, compared: similarity.Compared, keys: Tensor) -> Tensor:
    """Compare every query with its own window ``(N, w)``: ``(B, N, w)``."""
    index = keys.expand(compared.query.shape[0], -1, -1)
    if compared.metric in similarity.EUCLIDEAN:
        return -similarity.squared_distances(compared, index, pair_distance)
    query, key = similarity.embed_to_rank(compared.query, compared.key, compared.metric, problem.scale)
    scores: Tensor = pair_product(query, key, index)
    return scores


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
