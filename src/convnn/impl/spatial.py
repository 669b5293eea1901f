"""Spatial neighbours: a table of offsets, the same for every sample and every feature."""

from __future__ import annotations

from .. import _plan as plan
from ..types import Neighbors, Problem, Search
from .base import Implementation


class Spatial(Implementation):
    """The closed form of the spatial search."""

    name = "spatial"
    reason = "spatial neighbours are geometry: nothing is compared"

    def why_not(self, problem: Problem) -> str | None:
        """Return why this is no spatial search, or None."""
        search, gather = problem
        if search is None or gather is not None:
            return "it only searches"
        return None if search.similarity == "spatial" else "the similarity is not spatial"

    def search(self, problem: Search) -> Neighbors:
        """Return the k nearest positions of every query, in raster order."""
        return plan.search_spatial(problem)
