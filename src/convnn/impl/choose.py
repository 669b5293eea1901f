"""Which implementation runs, and why; the only place that knows all of them."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..errors import invalid
from ..types import Choice, Gather, Neighbors, Search

_log = logging.getLogger("convnn")

_LIMITS: dict[str, str] = {"conv": "a convolution", "sdpa": "attention"}


def choose_impl(impl: str, search: Search | None, gather: Gather | None) -> Choice:
    """Choose the implementation of a search (``gather`` None), a gather (``search`` None), or both at once.

    Pure: it reads shapes and options and runs nothing. Raises if an explicit ``impl`` cannot run the problem.
    """
    if impl in ("reference", "dense"):
        return Choice(impl, "asked for")
    refusals = [_cannot(name, search, gather) for name in _LIMITS]
    if impl in _LIMITS:
        refusal = refusals[list(_LIMITS).index(impl)]
        if refusal is not None:
            raise invalid("impl", f"an implementation that can run this ({impl!r} cannot: {refusal})", repr(impl),
                          "use impl='auto'")  # fmt: skip
        return Choice(impl, "asked for")
    for name, refusal in zip(_LIMITS, refusals, strict=True):
        if refusal is None:
            return Choice(name, f"this is {_LIMITS[name]}, which has a native kernel")
    why = "; ".join(f"not {name}: {refusal}" for name, refusal in zip(_LIMITS, refusals, strict=True))
    return Choice("dense", f"the general implementation ({why})")


def _cannot(name: str, search: Search | None, gather: Gather | None) -> str | None:
    if search is None or gather is None:
        return "it is known only where search and aggregation are one call"
    from . import limits

    return limits.cannot_convolve(search, gather) if name == "conv" else limits.cannot_attend(search, gather)


def run_search(impl: str, problem: Search) -> Neighbors:
    """Run ``knn_search`` by the implementation chosen."""
    from . import dense, reference

    choice = _logged(choose_impl(impl, problem, None))
    return reference.search(problem) if choice.impl == "reference" else dense.search(problem)


def run_gather(impl: str, problem: Gather, neighbors: Neighbors) -> Tensor:
    """Run ``knn_gather`` by the implementation chosen."""
    from . import dense, reference

    choice = _logged(choose_impl(impl, None, problem))
    return reference.gather(problem, neighbors) if choice.impl == "reference" else dense.gather(problem, neighbors)


def run_aggregate(impl: str, search: Search, gather: Gather) -> Tensor:
    """Run ``knn_aggregate`` by the implementation chosen."""
    from . import dense, limits, reference

    choice = _logged(choose_impl(impl, search, gather))
    run = {
        "reference": reference.aggregate,
        "dense": dense.aggregate,
        "conv": limits.convolve,
        "sdpa": limits.attend,
    }[choice.impl]
    return run(search, gather)


def _logged(choice: Choice) -> Choice:
    if not torch.compiler.is_compiling():
        _log.debug("impl %s: %s", choice.impl, choice.reason)
    return choice
