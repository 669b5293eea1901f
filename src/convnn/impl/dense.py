"""The plain implementation: every similarity at once, then a k-fold copy of the neighbours.

This is the published algorithm, made exact. It needs ``O(B N M + B N k C)`` memory; it is what the other
implementations are measured against.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import plan
from ..precision import without_autocast
from ..stages import aggregate as slots
from ..stages import similarity
from ..types import Gather, Neighbors, Search


def search(problem: Search) -> Neighbors:
    """Find the k neighbours of every query from the full matrix of similarities."""
    if problem.similarity == "spatial":
        return plan.search_spatial(problem)
    with without_autocast(problem.query.device):
        query, key, metric = plan.features(problem)
        own = plan.own_index(problem)
        table = plan.table_of(problem, own)
        with torch.no_grad():
            ranked = similarity.embed_to_rank(query, key, metric, problem.scale)
            index = plan.choose(problem, _scores(ranked, table, stable=problem.deterministic), table, own)
        if not problem.need_similarity:
            return plan.unweighted(problem, index)
        embedded = similarity.embed(query, key, metric, problem.scale)
        pairs = similarity.of_pairs(embedded.query.unsqueeze(2), slots.take(embedded.key, index), metric)
        return plan.in_slot_order(problem, pairs, index)


def _scores(embedded: similarity.Embedded, table: plan.Table, *, stable: bool) -> Tensor:
    """What the ranking is by: ``(B, N, M)``, or ``(B, N, r)``, or ``(B, N, w)``; -inf for keys infinitely far."""
    query, key, bias = embedded
    if table.keys is None or table.keys.dim() == 1:
        if table.keys is not None:
            key, bias = key[:, table.keys], None if bias is None else bias[:, table.keys]
        bias = None if bias is None else bias.unsqueeze(1)
        # A product of matrices may round equal columns differently, by where they stand.
        scores = (query.unsqueeze(2) * key.unsqueeze(1)).sum(-1) if stable else query @ key.transpose(1, 2)
    else:
        bias = None if bias is None else bias[:, table.keys]
        scores = (query.unsqueeze(2) * key[:, table.keys]).sum(-1)
    return scores if bias is None else (scores + bias).masked_fill(bias.isneginf(), -torch.inf)


def gather(problem: Gather, neighbors: Neighbors) -> Tensor:
    """Copy the neighbours k-fold, weight them, and apply every slot's matrix in one product."""
    tokens = slots.take(problem.value, neighbors.index)
    rho = plan.rho_of(problem, neighbors.similarity)
    if rho is not None:
        tokens = tokens * rho.to(tokens.dtype).unsqueeze(-1)
    mixed = slots.mix_slots(tokens, problem.weight, problem.groups)
    return mixed if problem.bias is None else mixed + problem.bias.to(mixed.dtype)


def aggregate(problem: Search, aggregation: Gather) -> Tensor:
    """Search, then gather."""
    return gather(aggregation, search(problem))
