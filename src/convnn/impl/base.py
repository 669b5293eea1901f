"""The interface of every implementation of the operator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from ..types import Gather, Neighbors, Problem, Search


class Implementation(ABC):
    """One way to run the operator, or the part of it that ``why_not`` lets through.

    A new one is a subclass in a module of its own and a line in ``choose.IMPLEMENTATIONS``.

    Attributes:
        name: what ``impl=`` calls it.
        reason: why ``impl="auto"`` takes it.
        on_request: whether only an explicit ``impl=`` takes it.
        saves_output: whether its backward pass reads the tensor that ``aggregate`` returns.
        keeps_tangents: whether forward-mode differentiation is right; custom operators would drop tangents in silence.
    """

    name: ClassVar[str]
    reason: ClassVar[str] = ""
    on_request: ClassVar[bool] = False
    saves_output: ClassVar[bool] = False
    keeps_tangents: ClassVar[bool] = True

    def why(self, problem: Problem) -> str:
        """Return why ``impl="auto"`` takes this implementation for a problem that it can run."""
        return self.reason

    @abstractmethod
    def why_not(self, problem: Problem) -> str | None:
        """Return the reason why this implementation cannot run a problem, or None; reads shapes and options only."""

    def why_not_map(self, problem: Problem) -> str | None:
        """Return the reason why ``aggregate_map`` cannot run a problem that ``aggregate`` can, or None."""
        return "it takes tokens"

    def search(self, problem: Search) -> Neighbors:
        """Return the neighbours ``(B, N, k)`` of every query."""
        raise NotImplementedError

    def gather(self, problem: Gather, neighbors: Neighbors) -> Tensor:
        """Aggregate the values of neighbours: ``(B, N, C_out)``."""
        raise NotImplementedError

    def aggregate(self, search: Search, gather: Gather) -> Tensor:
        """Search and gather: ``(B, N, C_out)``."""
        return self.gather(gather, self.search(search))

    def aggregate_map(self, search: Search, gather: Gather) -> Tensor:
        """Search and gather on the tokens of a map without its padding (``search.geometry``): the output's map."""
        raise NotImplementedError
