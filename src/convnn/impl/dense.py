"""The plain implementation: every similarity at once, then a k-fold copy of the neighbours.

This is the published algorithm, made exact. It needs ``O(B N M + B N k C)`` memory; it is the comparator of the faster
implementations and what they fall back on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import invalid
from ..precision import search_dtype, without_autocast
from ..stages import aggregate as slots
from ..stages import candidates, geometry, select, similarity
from ..types import Blend, Gather, Grid, Lattice, Neighbors, Search, Window


class _Table(NamedTuple):
    """Who may be chosen: ``keys`` None (every key), ``(r,)`` or ``(N, w)``; ``exists`` ``(N, w)`` or None (all do)."""

    keys: Tensor | None
    exists: Tensor | None


def search(problem: Search) -> Neighbors:
    """Find the k neighbours of every query from the full matrix of similarities."""
    if problem.similarity == "spatial":
        return _search_spatial(problem)
    with without_autocast(problem.query.device):
        return _search_features(problem)


def _search_features(problem: Search) -> Neighbors:
    query, key, metric = _features(problem)
    embedded = similarity.embed(query, key, metric, problem.scale)
    own = _own_index(problem)
    table = _table(problem, own, problem.grid)
    with torch.no_grad():
        index = _choose(problem, _scores(embedded, table), table, own)
    if not problem.need_similarity:
        return Neighbors(index.to(query.dtype), index)
    pairs = similarity.of_pairs(embedded.query.unsqueeze(2), slots.take(embedded.key, index), metric)
    if problem.every and problem.key_padding_mask is not None:
        masked = problem.key_padding_mask.unsqueeze(1).expand(-1, index.shape[1], -1).gather(2, index)
        pairs = pairs.masked_fill(masked, -torch.inf)
    return _sorted(problem, pairs, index)


def _features(problem: Search) -> tuple[Tensor, Tensor, str]:
    """The vectors to compare, in the precision of the search: the tokens, or the tokens beside their coordinates."""
    dtype = search_dtype(problem.query.dtype)
    query, key = problem.query.to(dtype), problem.key.to(dtype)
    if not isinstance(problem.similarity, Blend):
        return query, key, problem.similarity
    lam, feature = problem.similarity.lam, problem.similarity.feature
    places = geometry.coordinates(problem.grid, dtype=dtype, device=key.device)
    spread = similarity.feature_spread(key)
    own = _own_index(problem)
    own_places = places if own is None else places[own]
    return (
        similarity.blend(query, spread, own_places, lam),
        similarity.blend(key, spread, places, lam),
        feature,
    )


def _own_index(problem: Search) -> Tensor | None:
    if isinstance(problem.query_index, Lattice):
        return problem.query_index.index(problem.grid, problem.query.device)
    return problem.query_index


def _table(problem: Search, own: Tensor | None, grid: tuple[int, ...]) -> _Table:
    chosen, device = problem.candidates, problem.query.device
    if isinstance(chosen, Tensor):
        return _Table(chosen, None)
    if isinstance(chosen, Grid):
        return _Table(candidates.grid_positions(chosen.g, chosen.margin, grid, device=device), None)
    if isinstance(chosen, Window) and own is not None:
        size, dilation = chosen.per_axis(len(grid))
        positions = geometry.unravel(own, grid)
        if chosen.border == "shift":
            return _Table(candidates.shifted_window(size, dilation, positions, grid=grid), None)
        return _Table(*candidates.clipped_window(candidates.window_offsets(size, dilation, device), positions, grid))
    return _Table(None, None)


def _scores(embedded: similarity.Embedded, table: _Table) -> Tensor:
    """What the ranking is by: ``(B, N, M)``, or ``(B, N, r)``, or ``(B, N, w)``."""
    query, key, bias = embedded
    if table.keys is None or table.keys.dim() == 1:
        if table.keys is not None:
            key, bias = key[:, table.keys], None if bias is None else bias[:, table.keys]
        scores = query @ key.transpose(1, 2)
        return scores if bias is None else scores + bias.unsqueeze(1)
    scores = torch.einsum("bnc,bnwc->bnw", query, key[:, table.keys])
    return scores if bias is None else scores + bias[:, table.keys]


def _choose(problem: Search, scores: Tensor, table: _Table, own: Tensor | None) -> Tensor:
    """From scores ``(B or 1, N, w)`` to the keys chosen, ``(B, N, k)``, own token first where it is always taken."""
    batch, take_self = problem.query.shape[0], problem.include_self and own is not None
    excluded = _excluded(problem, table, own if take_self else None)
    if excluded is not None:
        if not problem.every:  # then the mask is not to reduce k, and was checked to leave a key
            _check_enough(problem, ~excluded, scores.shape[-1], problem.k - take_self)
        scores = select.exclude(scores, excluded)
    places = select.top(scores, problem.k - take_self, deterministic=problem.deterministic)
    if problem.similarity == "spatial":
        places = places.sort(dim=-1).values
    index = _to_keys(places, table).expand(batch, -1, -1)
    return select.with_self_first(own, index) if take_self and own is not None else index


def _to_keys(places: Tensor, table: _Table) -> Tensor:
    if table.keys is None:
        return places
    if table.keys.dim() == 1:
        return table.keys[places]
    return table.keys.expand(places.shape[0], -1, -1).gather(2, places)


def _excluded(problem: Search, table: _Table, own: Tensor | None) -> Tensor | None:
    """Who may not be chosen, broadcastable to the scores; ``own`` is given where it has a slot of its own already."""
    masks = []
    if table.exists is not None:
        masks.append(~table.exists.unsqueeze(0))
    keys = torch.arange(problem.key.shape[1], device=problem.key.device) if table.keys is None else table.keys
    if own is not None:
        masks.append((keys == own.unsqueeze(-1)).unsqueeze(0))
    if problem.key_padding_mask is not None:
        mask = problem.key_padding_mask[:, keys]
        masks.append(mask if mask.dim() == 3 else mask.unsqueeze(1))
    if not masks:
        return None
    excluded = masks[0]
    for mask in masks[1:]:
        excluded = excluded | mask
    return excluded


def _check_enough(problem: Search, allowed: Tensor, width: int, needed: int) -> None:
    """Refuse a mask or a border that leaves a query too few candidates; unknowable while a graph is being traced."""
    if torch.compiler.is_compiling() or allowed.is_meta or allowed.numel() == 0:
        return
    least = int(allowed.expand(*allowed.shape[:2], width).sum(-1).min())
    if least < needed:
        extra = problem.k - needed
        raise invalid(
            "k",
            f"at most {least + extra} (a query has only {least} candidates"
            + (" beside itself" if extra else "")
            + " after masks and borders)",
            problem.k,
            "lower k, mask fewer keys, add padding or more candidates, or use Window(..., border='shift')",
        )


def _sorted(problem: Search, pairs: Tensor, index: Tensor) -> Neighbors:
    """Order the slots by the exact similarities; the scores that chose them may differ in the last bit."""
    first = 1 if problem.include_self and problem.query_index is not None else 0
    if problem.deterministic:
        index, order = index.sort(dim=-1) if first == 0 else _sort_others(index)
        pairs = pairs.gather(-1, order)
    order = pairs[..., first:].detach().sort(dim=-1, descending=True, stable=True).indices + first
    if first:
        order = F.pad(order, (1, 0))
    return Neighbors(pairs.gather(-1, order), index.gather(-1, order))


def _sort_others(index: Tensor) -> tuple[Tensor, Tensor]:
    """Sort all slots but the first by index."""
    values, order = index[..., 1:].sort(dim=-1)
    return torch.cat([index[..., :1], values], -1), F.pad(order + 1, (1, 0))


def _search_spatial(problem: Search) -> Neighbors:
    """Find the k nearest grid positions: a table of offsets, the same for every sample and every feature."""
    own = _own_index(problem)
    if own is None:
        raise invalid("query_index", "the queries' positions (spatial similarity compares positions)", None, "pass it")
    grid, positions = problem.grid, geometry.unravel(own, problem.grid)
    index, exists = _spatial_table(problem, own, positions)
    _, ranking = similarity.spatial(positions.unsqueeze(1), geometry.unravel(index, grid), grid)
    # Ties go to the lowest place, which is raster order: this similarity has a tie rule of its own.
    in_order = problem._replace(deterministic=True)
    chosen = _choose(in_order, -ranking.unsqueeze(0), _Table(index, exists), own)
    distance, _ = similarity.spatial(positions.unsqueeze(1), geometry.unravel(chosen, grid), grid)
    return Neighbors(-distance.to(search_dtype(problem.query.dtype)), chosen)


def _spatial_table(problem: Search, own: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
    table, grid = _table(problem, own, problem.grid), problem.grid
    if table.keys is not None:
        return table.keys, table.exists
    if problem.key_padding_mask is not None:
        return torch.arange(problem.key.shape[1], device=own.device), None
    radius = candidates.nearest_radius(problem.k, grid)
    size = tuple(2 * min(radius, length - 1) + 1 for length in grid)
    offsets = candidates.window_offsets(size, (1,) * len(grid), own.device)
    return candidates.clipped_window(offsets, positions, grid)


def gather(problem: Gather, neighbors: Neighbors) -> Tensor:
    """Copy the neighbours k-fold, weight them, and apply every slot's matrix in one product."""
    tokens = slots.take(problem.value, neighbors.index)
    rho = slots.neighbor_weights(neighbors.similarity, problem.weighting, problem.temperature)
    if problem.dropout_p:
        rho = F.dropout(torch.ones_like(neighbors.similarity) if rho is None else rho, problem.dropout_p)
    if rho is not None:
        tokens = tokens * rho.to(tokens.dtype).unsqueeze(-1)
    mixed = slots.mix_slots(tokens, problem.weight, problem.groups)
    return mixed if problem.bias is None else mixed + problem.bias.to(mixed.dtype)


def aggregate(problem: Search, aggregation: Gather) -> Tensor:
    """Search, then gather."""
    return gather(aggregation, search(problem))
