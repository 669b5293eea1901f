"""Few candidates for all queries: each slot's matrix is applied to the candidates once, before they are gathered.

With r candidates only r + 1 distinct tokens can appear in a query's sum, so ``2 B (N + r (k - 1)) C_in C_out``
operations replace ``2 B N k C_in C_out``: about k times fewer.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _nearest as nearest
from .. import _plan as plan
from .._precision import autocast_dtype
from ..maps import QueryGrid
from ..ops import short_softmax
from ..ops.bags import slot_rows
from ..ops.sampled import gather_or_zero, query_rows
from ..ops.slots import project
from ..stages import geometry
from ..types import Blend, Gather, Grid, Neighbors, Problem, Search
from .base import Implementation


class ProjectFirst(Implementation):
    """Project, then gather: each slot's matrix is applied to the candidates once."""

    name = "project_first"
    reason = "few candidates: the slot matrices are applied to them before they are gathered"
    keeps_tangents = False

    def why(self, problem: Problem) -> str:
        """Return why it is taken, and what runs it."""
        why_not = nearest.why_not_native(problem)
        return f"{self.reason}; by {'the native library' if why_not is None else f'PyTorch: {why_not}'}"

    def why_not(self, problem: Problem) -> str | None:
        """Return why projecting the candidates first is not possible, or None."""
        search, gather = problem
        if search is None or gather is None:
            return "it is known only where search and aggregation are one call"
        if not isinstance(search.candidates, Tensor | Grid):
            return "the candidates are not one list for all queries"
        if search.query_index is None or not search.include_self:
            return "the queries are no keys, so that no slot is their own"
        if gather.weight is None:
            return "there are no slot matrices to apply first"
        return None

    def why_not_map(self, problem: Problem) -> str | None:
        """Return why the map must be padded, or None if its padding matters only as candidates."""
        search, gather = problem
        if search is None or gather is None or search.geometry is None:
            return "there is no map"
        if isinstance(search.similarity, Blend) or not _takes_indices(search, gather) or gather.groups != 1:
            return "it takes tokens"
        if not search.geometry.queries_are_tokens:
            return "queries are in the padding"
        return None if search.geometry.padding_mode == "zeros" else "the padding is not zeros"

    def aggregate(self, search: Search, gather: Gather) -> Tensor:
        """Search among the candidates, project them, and gather the projections."""
        operators = _operators(search, gather)
        if not _takes_indices(search, gather):
            neighbors = nearest.neighbors(search, operators)
            others = plan.index_among(neighbors.index[..., 1:], _candidate_keys(search), search.keys)
            return _mix(search, gather, others, neighbors, operators)
        others = nearest.among_candidates(search, operators)
        if gather.groups == 1 and isinstance(search.query_index, QueryGrid):
            return _mix_map(search, gather, others, (0,) * len(search.grid), operators, by_channels=False)
        return _mix(search, gather, others, None, operators)

    def aggregate_map(self, search: Search, gather: Gather) -> Tensor:
        """Aggregate on the map as it is; of its padding only candidates are gathered, as zeros."""
        described = search.geometry
        if described is None:
            raise TypeError("geometry")
        keys = geometry.without_padding(_candidate_keys(search), search.grid, described.padding)
        if search.query is search.key:
            x = geometry.view_map(search.key, described.sizes)
            inside = tuple(
                [start - amount for start, amount in zip(described.queries.offset, described.padding, strict=True)]
            )
            queries = dataclasses.replace(described.queries, offset=inside)
            search = search._replace(query=geometry.to_tokens(geometry.subsample(x, queries)))
        operators = _operators(search, gather)
        others = nearest.among_tokens(search, gather_or_zero(search.key.detach(), keys), operators)
        out = _mix_map(search, gather, others, described.padding, operators, by_channels=not described.channels_last)
        return geometry.view_map(out, described.queries.shape)


def _takes_indices(search: Search, gather: Gather) -> bool:
    """Return True if only the indices of the neighbours matter, not their similarities."""
    return search.similarity != "spatial" and gather.weighting == "ones" and not gather.dropout_p


def _candidate_keys(problem: Search) -> Tensor:
    """Return the candidates' positions ``(r,)``."""
    keys = plan.candidate_table(problem, None).keys
    if keys is None:
        raise TypeError("candidates")
    return keys


def _operators(search: Search, gather: Gather) -> nearest.Operators:
    """Return the native operators where they can run the problem, else the plain ones."""
    return nearest.PLAIN if nearest.why_not_native(Problem(search, gather)) else nearest.NATIVE


def _mix(
    problem: Search,
    aggregation: Gather,
    others: Tensor,
    neighbors: Neighbors | None,
    operators: nearest.Operators,
) -> Tensor:
    """Aggregate the query's own token in slot 0 and the candidates ``others`` ``(B, N, k - 1)`` in the others.

    The similarities of ``neighbors``, if given, weight them.
    """
    weight, bias, groups = aggregation.weight, aggregation.bias, aggregation.groups
    if weight is None:
        raise TypeError("weight")
    dtype = autocast_dtype(aggregation.value)
    value, weight = aggregation.value.to(dtype), geometry.match_gradient_layout(weight).to(dtype)
    rho = None if neighbors is None else plan.rho_with_dropout(aggregation, neighbors.similarity, short_softmax)
    rho = None if rho is None else rho.to(dtype)
    first, rest = weight.split([1, problem.k - 1], dim=2)
    mixed = _self_slot(_self_values(problem, value), first.squeeze(2), groups)
    mixed = mixed if rho is None else mixed * rho[..., :1]
    if problem.k > 1:
        keys = _candidate_keys(problem)
        projected, rows = project(value.index_select(1, keys), rest, groups), slot_rows(others, keys.shape[0])
        mixed = mixed + operators.bag_sum(projected, rows, None if rho is None else rho[..., 1:])
    return mixed if bias is None else mixed + bias.to(dtype)


def _mix_map(
    problem: Search,
    aggregation: Gather,
    others: Tensor,
    padding: tuple[int, ...],
    operators: nearest.Operators,
    *,
    by_channels: bool,
) -> Tensor:
    """Aggregate as ``_mix`` the tokens ``(B, M, C)`` of a map without its padding of zeros, which positions count.

    Values are read, and the result is stored, channels-first if ``by_channels``.
    """
    queries, weight, bias = problem.query_index, aggregation.weight, aggregation.bias
    if not isinstance(queries, QueryGrid) or weight is None:
        raise TypeError("weight")
    dtype = autocast_dtype(aggregation.value)
    grid = [size - 2 * amount for size, amount in zip(problem.grid, padding, strict=True)]
    offset = [start - amount for start, amount in zip(queries.offset, padding, strict=True)]
    slots = geometry.match_gradient_layout(weight).to(dtype).permute(2, 0, 1).contiguous()
    keys = geometry.without_padding(_candidate_keys(problem), problem.grid, padding)
    mixed: Tensor = operators.sampled_mix(
        aggregation.value.to(dtype), slots, None if bias is None else bias.to(dtype), keys, others,
        [*grid, *queries.shape, *offset, *queries.stride], by_channels,
    )  # fmt: skip
    return mixed


def _self_values(problem: Search, value: Tensor) -> Tensor:
    """Return the queries' own values ``(B, N, C)``."""
    query_grid = problem.query_index
    if isinstance(query_grid, QueryGrid):
        return query_rows(value, [*problem.grid, *query_grid.shape, *query_grid.offset, *query_grid.stride]).flatten(
            1, -2
        )
    return value[:, query_grid]


def _self_slot(value: Tensor, matrix: Tensor, groups: int) -> Tensor:
    """Apply one slot's matrix ``(C_out, C_in/groups)`` to ``(B, N, C_in)``."""
    if groups == 1:
        return F.linear(value, matrix)
    if matrix.shape[1] == 1 and matrix.shape[0] == groups:
        return value * matrix.squeeze(1)
    slots = matrix.unflatten(0, (groups, -1))
    return torch.einsum("bngc,goc->bngo", value.unflatten(2, (groups, -1)), slots).flatten(2)
