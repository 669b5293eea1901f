"""Stages that all searches share: embedding, candidates, slot order.

The implementations differ only in how they find the largest scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import search_dtype, wide_dtype
from ._tracing import readable
from .errors import invalid
from .maps import QueryGrid
from .stages import aggregate, candidates, geometry, select, similarity
from .types import Blend, Gather, Grid, Neighbors, Search, Window


def with_padding(search: Search, gather: Gather | None) -> tuple[Search, Any]:
    """Return the same problem on the tokens of the padded map."""
    described = search.geometry
    if described is None:
        return search, gather
    maps: dict[int, Tensor] = {}

    def padded(tokens: Tensor) -> Tensor:
        if id(tokens) not in maps:
            maps[id(tokens)] = geometry.pad_map(in_rows(tokens), described.padding, described.padding_mode)
        return geometry.to_tokens(maps[id(tokens)])

    def in_rows(tokens: Tensor) -> Tensor:
        x = geometry.view_map(tokens, described.sizes)
        # A search wants contiguous tokens.
        return geometry.match_gradient_layout(x) if search.similarity == "spatial" else geometry.to_channels_last(x)

    key = padded(search.key)
    query = search.query
    if query is search.key:
        query = geometry.to_tokens(geometry.subsample(maps[id(query)], described.queries))
    if gather is not None:
        gather = gather._replace(value=padded(gather.value), source=None)
    return search._replace(query=query, key=key, geometry=None), gather


class CandidateTable(NamedTuple):
    """The candidates of every query.

    ``keys`` is None (every key), ``(r,)`` or ``(N, w)``; ``exists`` ``(N, w)`` is True inside the grid, None: all.
    """

    keys: Tensor | None
    exists: Tensor | None


def compared(problem: Search) -> similarity.Compared:
    """Return the tokens to compare, in the precision of the search, with their coordinates under a ``Blend``."""
    dtype = search_dtype(problem.query.dtype)
    query, key = problem.query.to(dtype), problem.key.to(dtype)
    if not isinstance(problem.similarity, Blend):
        return similarity.Compared(query, key, problem.similarity)
    lam, feature = problem.similarity.lam, problem.similarity.feature
    is_euclidean, device = feature in similarity.EUCLIDEAN, key.device
    coordinates = geometry.coordinates(problem.grid, dtype=wide_dtype(device) if is_euclidean else dtype, device=device)
    self_index = query_positions(problem)
    query_coordinates = coordinates if self_index is None else coordinates[self_index]
    spread = similarity.feature_spread(key)
    if is_euclidean:
        return similarity.Compared(
            query, key, feature, lam / spread, query_coordinates * (1 - lam), coordinates * (1 - lam)
        )
    return similarity.Compared(
        similarity.blend(query, spread, query_coordinates, lam),
        similarity.blend(key, spread, coordinates, lam),
        feature,
    )


def query_positions(problem: Search) -> Tensor | None:
    """Return the queries' positions among the keys, ``(N,)``, or None if they are no keys."""
    if isinstance(problem.query_index, QueryGrid):
        return problem.query_index.index(problem.grid, problem.query.device)
    return problem.query_index


def candidate_table(problem: Search, self_index: Tensor | None) -> CandidateTable:
    """Return the candidates of queries at the positions ``self_index`` ``(N,)``."""
    kind, grid, device = problem.candidates, problem.grid, problem.query.device
    if isinstance(kind, Tensor):
        return CandidateTable(kind, None)
    if isinstance(kind, Grid):
        return CandidateTable(candidates.grid_positions(kind.g, kind.margin, grid, device=device), None)
    if isinstance(kind, Window) and self_index is not None:
        size, dilation = kind.per_axis(len(grid))
        positions = geometry.unravel(self_index, grid)
        if kind.border == "shift":
            return CandidateTable(candidates.shifted_window(size, dilation, positions, grid=grid), None)
        offsets = candidates.window_offsets(size, dilation, device)
        return CandidateTable(*candidates.clipped_window(offsets, positions, grid))
    return CandidateTable(None, None)


def select_neighbors(problem: Search, scores: Tensor, table: CandidateTable, self_index: Tensor | None) -> Tensor:
    """Return the selected keys ``(B, N, k)`` for scores ``(B or 1, N, w)``; slot 0 is the self index if included."""
    batch, take_self = problem.query.shape[0], problem.include_self and self_index is not None
    excluded = excluded_candidates(problem, table, self_index if take_self else None)
    if excluded is not None:
        if not problem.every:  # otherwise the mask may leave fewer than k; at least one key was checked for
            allowed = (~excluded).expand(*excluded.shape[:2], scores.shape[-1])
            check_enough(problem, allowed.sum(-1), problem.k - take_self)
        scores = select.exclude(scores, excluded)
    best = select.top(scores, problem.k - take_self, deterministic=problem.deterministic)
    if problem.similarity == "spatial":
        best = best.sort(dim=-1).values
    index = _to_keys(best, table).expand(batch, -1, -1)
    return select.with_self_first(self_index, index) if take_self and self_index is not None else index


def index_among(self_index: Tensor, keys: Tensor, count: int) -> Tensor:
    """Return the indices of ``self_index`` ``(...)`` in the list ``keys`` ``(r,)`` of ``count``; -1 if absent."""
    indices = torch.arange(keys.shape[0], device=keys.device)
    return torch.full((count,), -1, device=keys.device).scatter(0, keys, indices)[self_index]


def _to_keys(index: Tensor, table: CandidateTable) -> Tensor:
    if table.keys is None:
        return index
    if table.keys.dim() == 1:
        return table.keys[index]
    return table.keys.expand(index.shape[0], -1, -1).gather(2, index)


def excluded_candidates(problem: Search, table: CandidateTable, self_index: Tensor | None) -> Tensor | None:
    """Return the excluded candidates, broadcastable to the scores, or None.

    ``self_index`` is excluded too, if given: it fills slot 0 already.
    """
    masks = []
    if table.exists is not None:
        masks.append(~table.exists.unsqueeze(0))
    keys = torch.arange(problem.keys, device=problem.key.device) if table.keys is None else table.keys
    if self_index is not None:
        masks.append((keys == self_index.unsqueeze(-1)).unsqueeze(0))
    if problem.key_padding_mask is not None:
        mask = problem.key_padding_mask[:, keys]
        masks.append(mask if mask.dim() == 3 else mask.unsqueeze(1))
    if not masks:
        return None
    excluded = masks[0]
    for mask in masks[1:]:
        excluded = excluded | mask
    return excluded


def check_counts(problem: Search, keys: Tensor | None, self_index: Tensor | None) -> None:
    """Raise ConvNNError if a query has too few keys after the mask, or too few candidates ``keys`` ``(r,)``.

    ``self_index`` ``(N,)`` is the query among the candidates, which fills slot 0 (-1: none), or None.
    """
    mask = problem.key_padding_mask
    # Of k keys or more, even a query that is one of them has k - 1 beside itself.
    if problem.every or (mask is None and (keys is None or self_index is None or keys.shape[0] >= problem.k)):
        return
    if mask is None:
        left = torch.ones(1, problem.keys if keys is None else keys.shape[0], dtype=torch.bool)
        left = left.to(problem.key.device)
    else:
        left = ~mask if keys is None else ~mask[:, keys]
    count = left.sum(-1, keepdim=True)
    if self_index is not None:
        count = count - (left[:, self_index.clamp(min=0)] & (self_index >= 0)).long()
    check_enough(problem, count, problem.k - (self_index is not None))


def check_enough(problem: Search, count: Tensor, needed: int) -> None:
    """Raise ConvNNError if a query has fewer than ``needed`` candidates; nothing is checked while a graph is traced."""
    if count.numel() == 0 or not readable(count):
        return
    least = int(count.min())
    if least < needed:
        beside = problem.k - needed
        what = f"at most {least + beside} (a query has only {least} candidates"
        what += (" beside itself" if beside else "") + " after masks and borders)"
        fix = "lower k, mask fewer keys, add padding or more candidates, or use Window(..., border='shift')"
        raise invalid("k", what, problem.k, fix)


def without_similarity(problem: Search, index: Tensor) -> Neighbors:
    """Return neighbours with zeros as their similarities."""
    return Neighbors(index.new_zeros(1, dtype=search_dtype(problem.query.dtype)).expand(index.shape), index)


def in_slot_order(problem: Search, pairs: Tensor, index: Tensor) -> Neighbors:
    """Order the slots by the exact similarities; the scores of the search may differ in the last bit."""
    if problem.every and problem.key_padding_mask is not None:
        masked = problem.key_padding_mask.unsqueeze(1).expand(-1, index.shape[1], -1).gather(2, index)
        pairs = pairs.masked_fill(masked, -torch.inf)
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


def search_spatial(problem: Search) -> Neighbors:
    """Find the k nearest grid positions: a table of offsets, the same for every sample and every feature."""
    self_index = query_positions(problem)
    if self_index is None:
        raise invalid("query_index", "the queries' positions (spatial similarity compares positions)", None, "pass it")
    grid, positions = problem.grid, geometry.unravel(self_index, problem.grid)
    index, exists = _spatial_table(problem, self_index, positions)
    _, ranking = similarity.spatial(positions.unsqueeze(1), geometry.unravel(index, grid), grid)
    # Ties go to the lowest index, which is raster order: this similarity has a tie rule of its own.
    in_order = problem._replace(deterministic=True)
    index = select_neighbors(in_order, -ranking.unsqueeze(0), CandidateTable(index, exists), self_index)
    distance, _ = similarity.spatial(positions.unsqueeze(1), geometry.unravel(index, grid), grid)
    return Neighbors(-distance.to(search_dtype(problem.query.dtype)), index)


def _spatial_table(problem: Search, self_index: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None]:
    table, grid = candidate_table(problem, self_index), problem.grid
    if table.keys is not None:
        return table.keys, table.exists
    if problem.key_padding_mask is not None:
        return torch.arange(problem.keys, device=self_index.device), None
    radius = candidates.nearest_radius(problem.k, grid)
    size = tuple(2 * min(radius, length - 1) + 1 for length in grid)
    offsets = candidates.window_offsets(size, (1,) * len(grid), self_index.device)
    return candidates.clipped_window(offsets, positions, grid)


def rho_with_dropout(
    problem: Gather, s: Tensor, softmax: Callable[[Tensor], Tensor] = aggregate.softmax
) -> Tensor | None:
    """Return rho of the similarities ``(B, N, k)``, with dropout; None for ones."""
    rho = aggregate.neighbor_weights(s, problem.weighting, problem.temperature, softmax)
    if not problem.dropout_p:
        return rho
    return F.dropout(torch.ones_like(s) if rho is None else rho, problem.dropout_p)
