"""Dispatch: the list of implementations, and the choice of one for a problem."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _plan as plan
from .. import ops  # noqa: F401  # FLOP counters need the operators registered before they run
from ..errors import invalid, unknown_name
from ..stages import geometry
from ..types import Choice, Gather, Neighbors, Problem, Search
from .attention import Attention
from .base import Implementation
from .conv import Conv
from .dense import Dense
from .native import Native
from .project_first import ProjectFirst
from .reference import Reference
from .spatial import Spatial
from .tiled import Tiled

_log = logging.getLogger("convnn")

IMPLEMENTATIONS: list[Implementation] = [
    Conv(), Attention(), ProjectFirst(), Spatial(), Native(), Tiled(), Dense(), Reference(),
]  # fmt: skip
"""All implementations, in the order in which ``impl="auto"`` tries them."""


def check(impl: object) -> None:
    """Raise ConvNNError for a name that no implementation has."""
    names = ["auto", *(each.name for each in IMPLEMENTATIONS)]
    if not isinstance(impl, str) or impl not in names:
        raise unknown_name("impl", impl, names)


def choose(impl: str, problem: Problem) -> tuple[Implementation, Choice]:
    """Return the implementation of a search (no ``gather``), a gather (no ``search``), or both at once, and why.

    It reads shapes and options and runs nothing. Raises ConvNNError if an explicit ``impl`` cannot run the problem.
    """
    reasons: list[str] = []
    for each in IMPLEMENTATIONS:
        if each.name != impl and (impl != "auto" or each.on_request):
            continue
        why_not = each.why_not(problem)
        if why_not is not None:
            reasons.append(why_not if impl != "auto" else f"not {each.name}: {why_not}")
            continue
        why = "asked for" if impl != "auto" else each.why(problem)
        return each, Choice(each.name, f"{why} ({'; '.join(reasons)})" if reasons else why)
    expected = f"an implementation that can run this ({impl!r} cannot: {'; '.join(reasons)})"
    raise invalid("impl", expected, repr(impl), "use impl='auto'")


def run_search(impl: str, problem: Search) -> Neighbors:
    """Run a search by the implementation chosen."""
    if problem.geometry is not None:
        problem, _ = plan.with_padding(problem, None)
    return _choose_checked(impl, Problem(problem, None), problem.query, problem.key).search(problem)


def run_gather(impl: str, problem: Gather, neighbors: Neighbors) -> Tensor:
    """Run the aggregation of given neighbours by the implementation chosen."""
    tensors = (problem.value, problem.weight, neighbors.similarity)
    return _choose_checked(impl, Problem(None, problem), *tensors).gather(problem, neighbors)


def run_aggregate(impl: str, search: Search, gather: Gather, *, writable: bool = True) -> Tensor:
    """Search and aggregate by the implementation chosen: tokens ``(B, N, C_out)``, or a map with a geometry.

    ``writable``: the result may be modified in place.
    """
    problem, described = Problem(search, gather), search.geometry
    implementation = _choose_checked(impl, problem, search.query, search.key, gather.value, gather.weight, gather.bias)
    if described is not None and implementation.why_not_map(problem) is None:
        return implementation.aggregate_map(search, gather)
    if described is not None:
        search, gather = plan.with_padding(search, gather)
    out = implementation.aggregate(search, gather)
    if writable and implementation.saves_output and out.requires_grad:
        out = out.clone()
    return out if described is None else geometry.view_map(out, described.queries.shape)


def _choose_checked(impl: str, problem: Problem, *tensors: Tensor | None) -> Implementation:
    """Choose the implementation and log why; raises ConvNNError if it would drop tangents of ``tensors``."""
    implementation, choice = choose(impl, problem)
    if torch.compiler.is_compiling():
        return implementation
    _log.debug("impl %s: %s", choice.impl, choice.reason)
    duals = (x for x in tensors if x is not None and not implementation.keeps_tangents)
    if any(forward_ad.unpack_dual(x).tangent is not None for x in duals):
        fix = "use impl='dense', or differentiate backward (torch.func.jacrev, torch.autograd.grad)"
        raise invalid("impl", "'dense' for forward-mode differentiation", repr(choice.impl), fix)
    return implementation
