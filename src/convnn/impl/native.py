"""The native library: the search and the aggregation by C kernels, in bounded memory, for tokens on CPUs."""

from __future__ import annotations

from torch import Tensor

from .. import _nearest as nearest
from ..types import Gather, Neighbors, Problem, Search
from .base import Implementation


class Native(Implementation):
    """Similarity and selection in one pass; slot matrices applied to gathered rows, or sums of these."""

    name = "native"
    reason = "the native library"
    keeps_tangents = False

    def why_not(self, problem: Problem) -> str | None:
        """Return why there is no kernel for a problem, or None."""
        return nearest.why_not_native(problem)

    def search(self, problem: Search) -> Neighbors:
        """Find the k neighbours of every query."""
        return nearest.neighbors(problem, nearest.NATIVE)

    def gather(self, problem: Gather, neighbors: Neighbors) -> Tensor:
        """Aggregate the neighbours."""
        return nearest.gather(problem, neighbors, nearest.NATIVE)
