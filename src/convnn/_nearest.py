"""The search of bounded memory, by custom operators: what the implementations that use them share."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _plan as plan
from ._precision import search_dtype, without_autocast
from .ops.bags import pair_distance, pair_product
from .ops.euclidean import nearest_euclidean
from .ops.nearest import nearest
from .stages import select, similarity
from .types import Neighbors, Search


def neighbors(problem: Search) -> Neighbors:
    """Return the k neighbours of every query, found some queries at a time."""
    if problem.similarity == "spatial":
        return plan.search_spatial(problem)
    with without_autocast(problem.query.device):
        compared, own = plan.compared(problem), plan.own_index(problem)
        with torch.no_grad():
            index = _select(problem, compared, plan.candidate_table(problem, own), own)
        if not problem.need_similarity:
            return plan.unweighted(problem, index)
        pairs = similarity.of_pairs(compared, index, problem.scale, product=pair_product, distance=pair_distance)
        return plan.in_slot_order(problem, pairs, index)


def among_candidates(problem: Search) -> Tensor:
    """Return the neighbours beside the query itself, as indices ``(B, N, k - 1)`` into the list of candidates."""
    with without_autocast(problem.query.device), torch.no_grad():
        own = plan.own_index(problem)
        return _among_all(problem, plan.compared(problem), plan.candidate_table(problem, own).keys, own)


def among_tokens(problem: Search, candidates: Tensor) -> Tensor:
    """Return what ``among_candidates`` returns, where the candidates' features ``(B, r, C)`` are given."""
    dtype = search_dtype(problem.query.dtype)
    with without_autocast(problem.query.device), torch.no_grad():
        own = plan.own_index(problem)
        compared = similarity.Compared(problem.query.to(dtype), candidates.to(dtype), str(problem.similarity))
        return _among_listed(problem, compared, plan.candidate_table(problem, own).keys, own)


def _select(problem: Search, compared: similarity.Compared, table: plan.CandidateTable, own: Tensor | None) -> Tensor:
    if table.keys is not None and table.keys.dim() == 2:
        return plan.select_neighbors(problem, _window_scores(problem, compared, table.keys), table, own)
    own = own if problem.include_self else None
    found = _among_all(problem, compared, table.keys, own)
    index = found if table.keys is None else table.keys[found]
    return index if own is None else select.with_self_first(own, index)


def _among_all(problem: Search, compared: similarity.Compared, keys: Tensor | None, own: Tensor | None) -> Tensor:
    """Return indices ``(B, N, k)`` into the keys, or into those listed; one fewer beside the query's own."""
    if keys is not None:  # the others are not even looked at
        position = compared.key_position
        compared = compared._replace(
            key=compared.key.index_select(1, keys), key_position=None if position is None else position[keys]
        )
    return _among_listed(problem, compared, keys, own)


def _among_listed(problem: Search, compared: similarity.Compared, keys: Tensor | None, own: Tensor | None) -> Tensor:
    """Return what ``_among_all`` returns, where ``compared`` has the features of the listed keys alone."""
    masked, own_index = problem.key_padding_mask, own
    if keys is not None:
        masked = None if masked is None else masked[:, keys]
        own_index = None if own is None else plan.index_among(own, keys, problem.keys)
    plan.check_counts(problem, keys, own_index)
    count = problem.k - (own is not None)
    index: Tensor
    if compared.metric in similarity.EUCLIDEAN:
        query, key, _, factor, query_position, key_position = compared
        index = nearest_euclidean(
            query, key, factor, query_position, key_position, masked, own_index, count, problem.deterministic
        )
    else:
        query, key = similarity.embed_to_rank(compared.query, compared.key, compared.metric, problem.scale)
        index = nearest(query, key, None, masked, own_index, count, problem.deterministic)
    return index


def _window_scores(problem: Search, compared: similarity.Compared, keys: Tensor) -> Tensor:
    """Compare every query with its own window ``(N, w)``: ``(B, N, w)``."""
    index = keys.expand(compared.query.shape[0], -1, -1)
    if compared.metric in similarity.EUCLIDEAN:
        return -similarity.squared_distances(compared, index, pair_distance)
    query, key = similarity.embed_to_rank(compared.query, compared.key, compared.metric, problem.scale)
    scores: Tensor = pair_product(query, key, index)
    return scores
