"""Bounded memory: the search in tiles, the aggregation without a k-fold copy; ``O(B N (C + k))`` in all.

Every step is a custom operator that saves tokens and indices only and recomputes the rest in its backward pass.
"""

from __future__ import annotations

from torch import Tensor

from .. import _nearest as nearest
from ..types import Gather, Neighbors, Problem, Search
from .base import Implementation


class Tiled(Implementation):
    """A search in tiles of scores, and sums of projected rows."""

    name = "tiled"
    reason = "the general implementation of bounded memory"
    keeps_tangents = False

    def why_not(self, problem: Problem) -> str | None:
        """Return None: it runs every problem."""
        return None

    def search(self, problem: Search) -> Neighbors:
        """Find the k neighbours of every query, some queries at a time."""
        return nearest.neighbors(problem)

    def gather(self, problem: Gather, neighbors: Neighbors) -> Tensor:
        """Aggregate the neighbours by weighted sums of rows."""
        return nearest.gather(problem, neighbors)
