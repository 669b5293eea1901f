"""Few candidates for all queries: each slot's matrix meets the candidates once, before their rows are gathered.

With r candidates only r + 1 distinct tokens can appear in a query's sum, so ``2 B (N + r (k - 1)) C_in C_out``
operations replace ``2 B N k C_in C_out``: about k times fewer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import plan
from ..ops.bags import bag_sum
from ..ops.own import own_and_picked
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
    rho = None if neighbors is None else plan.rho_of(aggregation, neighbors.similarity)
    weight, bias, groups = aggregation.weight, aggregation.bias, aggregation.groups
    if weight is None:
        raise ValueError(cannot_sample(problem, aggregation))
    dtype = autocast_dtype(aggregation.value)
    value, weight = aggregation.value.to(dtype), weight.to(dtype)
    slots = problem.k - 1
    first, others = weight.split([1, slots], dim=2)
    bias = None if bias is None else bias.to(dtype)
    mixed, picked = _own_and_picked(problem, value, first.squeeze(2), None if rho is not None else bias, groups=groups)
    if rho is not None:
        mixed = mixed * rho[..., :1].to(dtype)
        mixed = mixed if bias is None else mixed + bias
    if slots:
        projected = project(picked, others, groups)
        rows = (places * slots).add_(torch.arange(slots, device=places.device))
        summed = bag_sum(projected, rows, None if rho is None else rho[..., 1:].to(dtype))
        mixed = mixed.add_(summed)
    return mixed


def _own_and_picked(
    problem: Search, value: Tensor, matrix: Tensor, bias: Tensor | None, *, groups: int
) -> tuple[Tensor, Tensor]:
    """Return the queries' own values after the matrix ``(C_out, C_in/groups)``, and the candidates' values."""
    keys, lattice = candidate_keys(problem), problem.query_index
    if isinstance(lattice, Lattice) and groups == 1:
        place = (*problem.grid, *lattice.shape, *lattice.origin, *lattice.stride)
        mixed, picked = own_and_picked(value, matrix, bias, keys, place)
        return mixed, picked
    own = plan.own_index(problem)
    if own is None:
        raise TypeError("query_index")
    return _own_slot(value[:, own], matrix, bias, groups=groups), value.index_select(1, keys)


def _own_slot(value: Tensor, matrix: Tensor, bias: Tensor | None, *, groups: int) -> Tensor:
    """Apply one slot's matrix ``(C_out, C_in/groups)`` to ``(B, N, C_in)``."""
    if groups == 1:
        return F.linear(value, matrix, bias)
    if matrix.shape[1] == 1 and matrix.shape[0] == groups:
        mixed = value * matrix.squeeze(1)
    else:
        slots = matrix.unflatten(0, (groups, -1))
        mixed = torch.einsum("bngc,goc->bngo", value.unflatten(2, (groups, -1)), slots).flatten(2)
    return mixed if bias is None else mixed + bias
