"""The native library: the search and the slot matrices by C kernels, in bounded memory, for tokens on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _nearest as nearest
from .. import native
from ..ops.native import MOST_K
from ..types import Gather, Neighbors, Problem, Search, Window
from .base import Implementation


class Native(Implementation):
    """Similarity and selection in one pass; slot matrices applied to gathered rows."""

    name = "native"
    reason = "the native library"
    keeps_tangents = False

    def why_not(self, problem: Problem) -> str | None:
        """Return why there is no kernel for a problem, or None."""
        absent = _why_no_library()
        if absent is not None:
            return f"the native library is not used: {absent}"
        search, gather = problem
        return (
            (search and _why_not_search(search)) or (gather and _why_not_gather(gather, alone=search is None)) or None
        )

    def search(self, problem: Search) -> Neighbors:
        """Find the k neighbours of every query."""
        return nearest.neighbors(problem, nearest.NATIVE)

    def gather(self, problem: Gather, neighbors: Neighbors) -> Tensor:
        """Aggregate the neighbours."""
        return nearest.gather(problem, neighbors, nearest.NATIVE)


# Dynamo cannot trace how the library is loaded, and does not need to: it does not change.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_no_library() -> str | None:
    return native.why_not()


def _why_no_tokens(tokens: Tensor) -> str | None:
    if tokens.device.type != "cpu":
        return f"it runs on CPUs, not on {tokens.device.type}"
    return "it computes in float32" if tokens.dtype == torch.float64 else None


def _why_not_search(problem: Search) -> str | None:
    if problem.similarity == "spatial":
        return "neighbours by geometry need no search"
    if isinstance(problem.candidates, Window):
        return "candidates differ from query to query"
    if problem.k > MOST_K:
        return f"it finds at most {MOST_K} neighbours"
    return _why_no_tokens(problem.query)


def _why_not_gather(problem: Gather, *, alone: bool) -> str | None:
    if alone and problem.weight is None:
        return "sums without matrices have no native kernel"
    if alone and problem.groups != 1:
        return "slot matrices in groups have no native kernel"
    return _why_no_tokens(problem.value)
