"""Few candidates for all queries: each slot's matrix meets the candidates once, before their rows are gathered.

With r candidates only r + 1 distinct tokens can appear in a query's sum, so ``2 B (N + r (k - 1)) C_in C_out``
operations replace ``2 B N k C_in C_out``: about k times fewer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import plan
from ..ops.bags import bag_sum
from ..ops.product import linear
from ..ops.slots import project
from ..precision import autocast_dtype
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


def mix(problem: Search, aggregation: Gather, neighbors: Neighbors) -> Tensor:
    """Aggregate neighbours of which slot 0 is the query's own token and the others are candidates."""
    rho = plan.rho_of(aggregation, neighbors.similarity)
    keys, own = candidate_keys(problem), plan.own_index(problem)
    weight, bias, groups = aggregation.weight, aggregation.bias, aggregation.groups
    if weight is None or own is None:
        raise ValueError(cannot_sample(problem, aggregation))
    dtype = autocast_dtype(aggregation.value)
    value, weight = aggregation.value.to(dtype), weight.to(dtype)
    slots = problem.k - 1
    first, others = weight.split([1, slots], dim=2)
    bias = None if bias is None else bias.to(dtype)
    mixed = _own_slot(
        _of_queries(problem, value, own), first.squeeze(2), None if rho is not None else bias, groups=groups
    )
    if rho is not None:
        mixed = mixed * rho[..., :1].to(dtype)
        mixed = mixed if bias is None else mixed + bias
    if slots:
        projected = project(value.index_select(1, keys), others, groups)
        places = plan.place_among(neighbors.index[..., 1:], keys, problem.key.shape[1])
        rows = places * slots + torch.arange(slots, device=places.device)
        mixed = mixed.add_(bag_sum(projected, rows, None if rho is None else rho[..., 1:].to(dtype)))
    return mixed


def _of_queries(problem: Search, value: Tensor, own: Tensor) -> Tensor:
    """Return the queries' own values; the values themselves where every key is a query."""
    lattice = problem.query_index
    if isinstance(lattice, Lattice) and lattice.shape == problem.grid:
        return value
    return value[:, own]


def _own_slot(value: Tensor, matrix: Tensor, bias: Tensor | None, *, groups: int) -> Tensor:
    """Apply one slot's matrix ``(C_out, C_in/groups)`` to ``(B, N, C_in)``."""
    if groups == 1:
        return linear(value.flatten(0, 1), matrix, bias).view(*value.shape[:2], -1)
    if matrix.shape[1] == 1 and matrix.shape[0] == groups:
        mixed = value * matrix.squeeze(1)
    else:
        slots = matrix.unflatten(0, (groups, -1))
        mixed = torch.einsum("bngc,goc->bngo", value.unflatten(2, (groups, -1)), slots).flatten(2)
    return mixed if bias is None else mixed + bias
