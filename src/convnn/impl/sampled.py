"""Few candidates for all queries: each slot's matrix meets the candidates once, before their rows are gathered.

With r candidates only r + 1 distinct tokens can appear in a query's sum, so ``2 B (N + r (k - 1)) C_in C_out``
operations replace ``2 B N k C_in C_out``: about k times fewer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import plan
from ..ops.bags import bag_sum, slot_rows
from ..ops.sampled import lie_by_channels, pick, queries_of, sampled_mix
from ..ops.slots import project
from ..ops.softmax import short_softmax
from ..precision import autocast_dtype
from ..stages import geometry
from ..types import Gather, Grid, Lattice, Neighbors, Search


def cannot_sample(problem: Search, aggregation: Gather) -> str | None:
    """Say why projecting the candidates first is not possible, or return None."""
    if not isinstance(problem.candidates, Tensor | Grid):
        return "the candidates are not one list for all queries"
    if problem.query_index is None or not problem.include_self:
        return "the queries are no keys, so that no slot is their own"
    if aggregation.weight is None:
        return "there are no slot matrices to apply first"
    return None


def candidate_keys(problem: Search) -> Tensor:
    """Return the candidates' positions ``(r,)``."""
    keys = plan.table_of(problem, None).keys
    if keys is None:
        raise TypeError("candidates")
    return keys


def takes_places(problem: Search, aggregation: Gather) -> bool:
    """Whether nothing but the places of the neighbours among the candidates matters."""
    return problem.similarity != "spatial" and aggregation.weighting == "ones" and not aggregation.dropout_p


def places_of(problem: Search, neighbors: Neighbors) -> Tensor:
    """Return where the neighbours but the first, the query itself, stand among the candidates: ``(B, N, k - 1)``."""
    return plan.place_among(neighbors.index[..., 1:], candidate_keys(problem), problem.key.shape[1])


def mix(problem: Search, aggregation: Gather, places: Tensor, neighbors: Neighbors | None) -> Tensor:
    """Aggregate the query's own token in slot 0 and the candidates at ``places`` in the others.

    The similarities of ``neighbors``, if given, weight them.
    """
    if neighbors is None and aggregation.groups == 1 and isinstance(problem.query_index, Lattice):
        return mix_map(problem, aggregation, places, (0,) * len(problem.grid))
    weight, bias, groups = aggregation.weight, aggregation.bias, aggregation.groups
    if weight is None:
        raise ValueError(cannot_sample(problem, aggregation))
    dtype = autocast_dtype(aggregation.value)
    value, weight = aggregation.value.to(dtype), geometry.gradient_alike(weight).to(dtype)
    rho = None if neighbors is None else plan.rho_of(aggregation, neighbors.similarity, short_softmax)
    rho = None if rho is None else rho.to(dtype)
    first, others = weight.split([1, problem.k - 1], dim=2)
    mixed = _own_slot(_own_values(problem, value), first.squeeze(2), groups)
    mixed = mixed if rho is None else mixed * rho[..., :1]
    if problem.k > 1:
        keys = candidate_keys(problem)
        projected, rows = project(value.index_select(1, keys), others, groups), slot_rows(places, keys.shape[0])
        mixed = mixed + bag_sum(projected, rows, None if rho is None else rho[..., 1:])
    return mixed if bias is None else mixed + bias.to(dtype)


def candidates_of_map(problem: Search, tokens: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Pick the candidates ``(B, r, C)`` from a map's tokens; the problem's grid has a padding of zeros around it."""
    return pick(tokens.detach(), _keys_of_map(problem, padding))


def mix_map(problem: Search, aggregation: Gather, places: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Aggregate as ``mix`` the values of a map ``(B, M, C)``; the problem's grid has a padding of zeros around it.

    The padding exists in the positions alone: of its tokens those that are candidates are made, and no others. The
    result lies as the values do, token by token or channel by channel.
    """
    lattice, weight, bias = problem.query_index, aggregation.weight, aggregation.bias
    if not isinstance(lattice, Lattice) or weight is None:
        raise ValueError(cannot_sample(problem, aggregation))
    dtype = autocast_dtype(aggregation.value)
    grid = [size - 2 * amount for size, amount in zip(problem.grid, padding, strict=True)]
    origin = [start - amount for start, amount in zip(lattice.origin, padding, strict=True)]
    slots = geometry.gradient_alike(weight).to(dtype).permute(2, 0, 1).contiguous()
    mixed: Tensor = sampled_mix(
        aggregation.value.to(dtype), slots, None if bias is None else bias.to(dtype), _keys_of_map(problem, padding),
        places, [*grid, *lattice.shape, *origin, *lattice.stride], lie_by_channels(aggregation.value),
    )  # fmt: skip
    return mixed


def _keys_of_map(problem: Search, padding: tuple[int, ...]) -> Tensor:
    return geometry.without_padding(candidate_keys(problem), problem.grid, padding)


def _own_values(problem: Search, value: Tensor) -> Tensor:
    """Return the queries' own values ``(B, N, C)``."""
    lattice = problem.query_index
    if isinstance(lattice, Lattice):
        return queries_of(value, [*problem.grid, *lattice.shape, *lattice.origin, *lattice.stride]).flatten(1, -2)
    return value[:, lattice]


def _own_slot(value: Tensor, matrix: Tensor, groups: int) -> Tensor:
    """Apply one slot's matrix ``(C_out, C_in/groups)`` to ``(B, N, C_in)``."""
    if groups == 1:
        return F.linear(value, matrix)
    if matrix.shape[1] == 1 and matrix.shape[0] == groups:
        return value * matrix.squeeze(1)
    slots = matrix.unflatten(0, (groups, -1))
    return torch.einsum("bngc,goc->bngo", value.unflatten(2, (groups, -1)), slots).flatten(2)
