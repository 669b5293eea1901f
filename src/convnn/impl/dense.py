"""The plain implementation: every similarity at once, then a k-fold copy of the neighbours.

This is the published algorithm, made exact. It needs ``O(B N M + B N k C)`` memory; the others are
measured against it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _plan as plan
from .._precision import wide_dtype, without_autocast
from ..stages import aggregate as slots
from ..stages import similarity
from ..types import Gather, Neighbors, Problem, Search
from .base import Implementation


class Dense(Implementation):
    """The full score matrix, and a k-fold copy of the values."""

    name = "dense"
    on_request = True

    def why_not(self, problem: Problem) -> str | None:
        """Return None: it runs every problem."""
        return None

    def search(self, problem: Search) -> Neighbors:
        """Find the k neighbours of every query from the full matrix of similarities."""
        if problem.similarity == "spatial":
            return plan.search_spatial(problem)
        with without_autocast(problem.query.device):
            compared = plan.compared(problem)
            self_index = plan.query_positions(problem)
            table = plan.candidate_table(problem, self_index)
            with torch.no_grad():
                index = plan.select_neighbors(problem, _scores(problem, compared, table), table, self_index)
            if not problem.need_similarity:
                return plan.without_similarity(problem, index)
            pairs = similarity.pairwise(compared, index, problem.scale, product=_products, distance=_distances)
            return plan.in_slot_order(problem, pairs, index)

    def gather(self, problem: Gather, neighbors: Neighbors) -> Tensor:
        """Copy the neighbours k-fold, weight them, and apply every slot's matrix in one product."""
        tokens = slots.take(problem.value, neighbors.index)
        rho = plan.rho_with_dropout(problem, neighbors.similarity)
        if rho is not None:
            tokens = tokens * rho.to(tokens.dtype).unsqueeze(-1)
        mixed = slots.mix_slots(tokens, problem.weight, problem.groups)
        return mixed if problem.bias is None else mixed + problem.bias.to(mixed.dtype)


def _scores(problem: Search, compared: similarity.Compared, table: plan.CandidateTable) -> Tensor:
    """Return the scores to rank by: ``(B, N, M)``, ``(B, N, r)`` or ``(B, N, w)``."""
    keys = table.keys
    if compared.metric in similarity.EUCLIDEAN:
        if keys is None or keys.dim() == 1:
            return -_all_distances(compared, keys)
        return -similarity.squared_distances(compared, keys.expand(compared.query.shape[0], -1, -1), _distances)
    query, key = similarity.embed_to_rank(compared.query, compared.key, compared.metric, problem.scale)
    if keys is not None and keys.dim() == 2:
        return (query.unsqueeze(2) * key[:, keys]).sum(-1)
    key = key if keys is None else key[:, keys]
    # A matrix product may round equal columns differently, depending on their position.
    return (query.unsqueeze(2) * key.unsqueeze(1)).sum(-1) if problem.deterministic else query @ key.transpose(1, 2)


def _products(query: Tensor, key: Tensor, index: Tensor) -> Tensor:
    """Return the inner products of each query with its k keys, ``(B, N, k)``."""
    return (query.unsqueeze(2) * slots.take(key, index)).sum(-1)


def _distances(query: Tensor, key: Tensor, index: Tensor) -> Tensor:
    """Return the squared distances of each query from its k keys, ``(B, N, k)``."""
    return (query.unsqueeze(2) - slots.take(key, index)).square().sum(-1)


def _all_distances(compared: similarity.Compared, keys: Tensor | None) -> Tensor:
    """Return the squared distances from every key, or from those listed, by differences in the widest precision."""
    dtype = wide_dtype(compared.query.device)

    def distances(query: Tensor, key: Tensor) -> Tensor:
        key = key if keys is None else key[..., keys, :]
        return torch.cdist(query.to(dtype), key.to(dtype), compute_mode="donot_use_mm_for_euclid_dist").square()

    squared = distances(compared.query, compared.key)
    if compared.factor is None or compared.query_position is None or compared.key_position is None:
        return squared
    return squared * compared.factor.to(dtype).square() + distances(compared.query_position, compared.key_position)
