"""Which implementation runs, and why; the only place that knows all of them."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import invalid
from ..ops import flops  # noqa: F401  # a counter of FLOPs must know the operators before they run
from ..types import Choice, Gather, Neighbors, Search

_log = logging.getLogger("convnn")

# What runs only some aggregations, in the order in which "auto" asks them, and why it does.
_SPECIAL = {
    "conv": "this is a convolution, which has a native kernel",
    "sdpa": "this is attention, which has a native kernel",
    "sampled": "few candidates: the slot matrices meet each of them once",
}
_GENERAL = ("reference", "dense", "tiled")


def choose_impl(impl: str, search: Search | None, gather: Gather | None) -> Choice:
    """Choose the implementation of a search (``gather`` None), a gather (``search`` None), or both at once.

    Pure: it reads shapes and options and runs nothing. Raises if an explicit ``impl`` cannot run the problem.
    """
    if impl in _GENERAL:
        return Choice(impl, "asked for")
    refusals = {name: _cannot(name, search, gather) for name in _SPECIAL}
    if impl in _SPECIAL:
        if refusals[impl] is not None:
            expected = f"an implementation that can run this ({impl!r} cannot: {refusals[impl]})"
            raise invalid("impl", expected, repr(impl), "use impl='auto'")
        return Choice(impl, "asked for")
    for name, refusal in refusals.items():
        if refusal is None:
            return Choice(name, _SPECIAL[name])
    why = "; ".join(f"not {name}: {refusal}" for name, refusal in refusals.items())
    return Choice("tiled", f"the general implementation of bounded memory ({why})")


def _cannot(name: str, search: Search | None, gather: Gather | None) -> str | None:
    if search is None or gather is None:
        return "it is known only where search and aggregation are one call"
    from . import limits, sampled

    asks = {"conv": limits.cannot_convolve, "sdpa": limits.cannot_attend, "sampled": sampled.cannot_sample}
    return asks[name](search, gather)


def run_search(impl: str, problem: Search) -> Neighbors:
    """Run ``knn_search`` by the implementation chosen."""
    choice = _logged(choose_impl(impl, problem, None))
    _refuse_tangents(choice, problem.query, problem.key)
    found: Neighbors = _general(choice).search(problem)
    return found


def run_gather(impl: str, problem: Gather, neighbors: Neighbors) -> Tensor:
    """Run ``knn_gather`` by the implementation chosen."""
    choice = _logged(choose_impl(impl, None, problem))
    _refuse_tangents(choice, problem.value, problem.weight, neighbors.similarity)
    out: Tensor = _general(choice).gather(problem, neighbors)
    return out


def run_aggregate(impl: str, search: Search, gather: Gather, *, own: bool = True) -> Tensor:
    """Run ``knn_aggregate`` by the implementation chosen; ``own``: the result may be modified in place."""
    from . import limits, sampled, tiled

    choice = _logged(choose_impl(impl, search, gather))
    _refuse_tangents(choice, search.query, search.key, gather.value, gather.weight)
    if choice.impl == "conv":
        return limits.convolve(search, gather)
    if choice.impl == "sdpa":
        return limits.attend(search, gather, own=own)
    if choice.impl == "sampled":
        if sampled.takes_places(search, gather):
            return sampled.mix(search, gather, tiled.places(search), None)
        neighbors = tiled.search(search)
        return sampled.mix(search, gather, sampled.places_of(search, neighbors), neighbors)
    out: Tensor = _general(choice).aggregate(search, gather)
    return out


def run_convolution(x: Tensor, weight: Tensor | None, bias: Tensor | None, **geometry: Any) -> Tensor:
    """Run the native convolution for a layer that was recognised as one when it was made."""
    from . import limits

    if weight is None:
        raise invalid("weight", "the slots of a convolution", None, "use aggregation='standard'")
    _logged(Choice("conv", _SPECIAL["conv"]))
    return limits.convolve_map(x, weight, bias, **geometry)


def run_sampled_map(search: Search, gather: Gather, padding: tuple[int, ...]) -> Tensor:
    """Run few candidates on the tokens of a map, for a layer that was recognised as such when it was made."""
    from . import sampled, tiled

    _refuse_tangents(_logged(Choice("sampled", _SPECIAL["sampled"])), gather.value, gather.weight, gather.bias)
    places = tiled.places_among(search, sampled.candidates_of_map(search, gather.value, padding))
    return sampled.mix_map(search, gather, places, padding)


def _general(choice: Choice) -> ModuleType:
    from . import dense, reference, tiled

    return {"reference": reference, "dense": dense, "tiled": tiled}[choice.impl]


def _refuse_tangents(choice: Choice, *tensors: Tensor | None) -> None:
    """Refuse forward-mode differentiation of custom operators, which would forget the tangents without a word."""
    if choice.impl not in ("tiled", "sampled") or torch.compiler.is_compiling():
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        fix = "use impl='dense', or differentiate backward (torch.func.jacrev, torch.autograd.grad)"
        raise invalid("impl", "'dense' for forward-mode differentiation", repr(choice.impl), fix)


def _logged(choice: Choice) -> Choice:
    if not torch.compiler.is_compiling():
        _log.debug("impl %s: %s", choice.impl, choice.reason)
    return choice
