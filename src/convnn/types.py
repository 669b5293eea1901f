"""The types of the operator: neighbours, candidate sets, similarities, and the checked problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .errors import invalid, shown, unknown_name
from .maps import MapGeometry, QueryGrid

SimilarityName = Literal["cosine", "dot", "sqeuclidean", "euclidean", "spatial"]
Weighting = Literal["ones", "identity", "softmax"]

SIMILARITIES: tuple[str, ...] = ("cosine", "dot", "sqeuclidean", "euclidean", "spatial")
BLENDED: tuple[str, ...] = ("cosine", "sqeuclidean", "euclidean")
WEIGHTINGS: tuple[str, ...] = ("ones", "identity", "softmax")


class Neighbors(NamedTuple):
    """The k neighbours of every query.

    Attributes:
        similarity: ``(..., N, k)``, in slot order. float32 for half-precision inputs.
        index: ``(..., N, k)`` int64, positions among the keys, in the same slot order.
    """

    similarity: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


def whole(argument: str, value: object, *, at_least: int = 1, fix: str = "give such a number") -> int:
    """Return an int of at least ``at_least``; raises ConvNNError, with ``fix``, for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt) or value < at_least:
        raise invalid(argument, f"a whole number of at least {at_least}", shown(value), fix)
    return value  # type: ignore[return-value]  # while a graph is traced a SymInt is used as an int


@dataclass(frozen=True)
class Random:
    """Candidates: ``r`` tokens drawn without replacement, one draw for the whole batch.

    With a ``seed`` every call makes the same draw, on every device. Otherwise every call draws from ``generator``, or
    from torch's global one. Activation checkpointing restores the state of the global generator alone: another one
    raises ConvNNError there. As many candidates as tokens, or more, means every token.

    >>> Random(3, seed=0).draw(10, torch.device("cpu")).shape
    torch.Size([3])
    """

    r: int
    seed: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        whole("Random.r", self.r, fix="give the number of candidates to draw")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | None):
            expected, fix = "an int or None", "give a seed, or a torch.Generator as generator="
            raise invalid("Random.seed", expected, shown(self.seed), fix)
        if not isinstance(self.generator, torch.Generator | None):
            fix = "give a seed as seed=, or a torch.Generator"
            raise invalid("Random.generator", "a torch.Generator or None", shown(self.generator), fix)
        if self.seed is not None and self.generator is not None:
            raise invalid("Random.seed", "None beside a generator", self.seed, "give only one of them")

    def takes_all(self, grid: Sequence[int]) -> bool:
        """Return True if every token of a grid is a candidate.

        >>> Random(4).takes_all((2, 2))
        True
        """
        return self.r >= math.prod(grid)

    def draw(self, tokens: int, device: torch.device) -> Tensor:
        """Draw ``(r,)`` distinct positions among ``tokens``, in ascending order."""
        if self.seed is not None:
            order = _hashed_order(tokens, self.seed, device)
        elif self.generator is None:
            order = torch.randperm(tokens, device=device)
        else:
            _check_not_replayed()
            order = torch.randperm(tokens, generator=self.generator, device=self.generator.device).to(device)
        return order[: self.r].sort().values


def _check_not_replayed() -> None:
    """Raise ConvNNError where a backward pass runs a forward pass again: the second draw would be another."""
    if torch._C._current_graph_task_id() != -1:
        expected = "None or a seed where a backward pass runs the layer again (activation checkpointing)"
        fix = "leave it out (torch's global generator, which checkpointing restores), or give a seed"
        raise invalid("Random.generator", expected, "a torch.Generator, which has moved on since", fix)


def _hashed_order(tokens: int, seed: int, device: torch.device) -> Tensor:
    """Order the tokens by a 32-bit mixing hash: a seeded permutation in plain tensor operations.

    A generator object cannot enter a compiled graph and differs between devices; this does neither. The hash is a
    bijection on 32 bits, so there are no ties, and every product stays below 2^63.
    """
    mask = 0xFFFFFFFF
    hashed = (torch.arange(tokens, device=device) + (seed * 0x9E3779B1 & mask)) & mask
    for _ in range(2):
        hashed = (((hashed >> 16) ^ hashed) * 0x45D9F3B) & mask
    return ((hashed >> 16) ^ hashed).argsort()


@dataclass(frozen=True)
class Grid:
    """Candidates: a regular sub-grid of ``g`` tokens per axis, at ``floor(linspace(margin, size-1-margin, g))``.

    A ``g`` above the smallest axis means every token.

    >>> Grid(5)
    Grid(g=5, margin=0)
    """

    g: int
    margin: int = 0

    def __post_init__(self) -> None:
        whole("Grid.g", self.g, fix="give the number of candidates per axis")
        fix = "give the distance of the first candidate from the border, in tokens"
        whole("Grid.margin", self.margin, at_least=0, fix=fix)

    def takes_all(self, grid: Sequence[int]) -> bool:
        """Return True if every token of a grid is a candidate."""
        return self.g > min(grid) or self.g == max(grid)


@dataclass(frozen=True)
class Window:
    """Candidates: the tokens inside a window of odd ``size`` around each query, ``dilation`` apart.

    At the border ``"clip"`` keeps the part of the window that exists (a query there has fewer candidates), and
    ``"shift"`` moves the window inside the grid, so that every query has the same number (neighbourhood attention,
    Hassani et al. 2023). ``size`` and ``dilation`` are one number for every axis, or one per axis.

    >>> Window(3)
    Window(size=3, dilation=1, border='clip')
    """

    size: int | Sequence[int]
    dilation: int | Sequence[int] = 1
    border: Literal["clip", "shift"] = "clip"

    def __post_init__(self) -> None:
        for argument in ("size", "dilation"):
            value = getattr(self, argument)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, argument, tuple(value))
            if isinstance(value, Sequence) and not value:
                raise invalid(f"Window.{argument}", "one number, or one per axis", repr(value), "give at least one")
            for number in getattr(self, argument) if isinstance(value, Sequence) else (value,):
                whole(f"Window.{argument}", number, fix="give one number, or one per axis")
        for number in self.size if isinstance(self.size, tuple) else (self.size,):
            if int(number) % 2 == 0:
                raise invalid("Window.size", "an odd size (the query is its centre)", repr(self.size), "add or take 1")
        if self.border not in ("clip", "shift"):
            raise unknown_name("Window.border", self.border, ("clip", "shift"))

    def per_axis(self, dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return ``(size, dilation)`` with one number per axis; raises if their lengths are not ``dims``."""
        return _per_axis("Window.size", self.size, dims), _per_axis("Window.dilation", self.dilation, dims)


def _per_axis(argument: str, value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    if len(value) != dims:
        raise invalid(argument, f"one number, or {dims} (one per axis)", value, f"give {dims} numbers")
    return tuple(value)


@dataclass(frozen=True)
class Blend:
    """Similarity of features and coordinates together: of ``[lam * x / std(x), (1 - lam) * p]`` (method "Loc_Col").

    ``lam`` = 1 looks at features alone, ``lam`` = 0 at positions alone. ``feature`` is the similarity of the
    concatenation: ``"cosine"``, ``"sqeuclidean"`` or ``"euclidean"``.

    >>> Blend(0.5)
    Blend(lam=0.5, feature='cosine')
    """

    lam: float
    feature: Literal["cosine", "sqeuclidean", "euclidean"] = "cosine"

    def __post_init__(self) -> None:
        if isinstance(self.lam, bool) or not isinstance(self.lam, int | float) or not 0 <= self.lam <= 1:
            raise invalid("Blend.lam", "a number in [0, 1]", repr(self.lam), "0 is purely spatial, 1 purely feature")
        if self.feature not in BLENDED:
            raise unknown_name("Blend.feature", self.feature, BLENDED)


Candidates = Literal["all"] | Random | Grid | Window | Tensor
Similarity = SimilarityName | Blend


class Search(NamedTuple):
    """A checked and resolved search, as every implementation receives it.

    Attributes:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        k: neighbours, at most M.
        every: whether k means every key that is not masked; a masked key then has similarity -inf.
        similarity: a name or a ``Blend``.
        scale: the factor of ``dot``.
        candidates: ``"all"``, a ``Grid``, a ``Window``, or ``(r,)`` ascending positions.
        include_self: whether slot 0 is the query's own token.
        grid: the keys' grid; its product is M.
        query_index: the queries' positions among the keys, ``(N,)`` or a ``QueryGrid``; None if they are not keys.
        key_padding_mask: ``(B, M)``, True for keys that may not be chosen, or None.
        deterministic: whether equal similarities are taken lowest index first.
        need_similarity: whether the similarities are used by what follows.
        geometry: the map whose tokens, without padding, are query, key and value; ``grid``, positions and
            ``query_index`` count the padding. None if there is no padding to add.
    """

    query: Tensor
    key: Tensor
    k: int
    every: bool
    similarity: Similarity
    scale: float
    candidates: Literal["all"] | Grid | Window | Tensor
    include_self: bool
    grid: tuple[int, ...]
    query_index: Tensor | QueryGrid | None
    key_padding_mask: Tensor | None
    deterministic: bool
    need_similarity: bool
    geometry: MapGeometry | None = None

    @property
    def keys(self) -> int:
        """M, the number of keys, padding included."""
        return math.prod(self.grid)


class Gather(NamedTuple):
    """A checked aggregation, as every implementation receives it.

    Attributes:
        value: ``(B, M, C_in)``.
        weight: ``(C_out, C_in/groups, k)``, or None for unit weights.
        bias: ``(C_out,)`` or None.
        weighting: how a similarity weights its neighbour.
        temperature: the divisor of the similarities under ``softmax``.
        groups: as in ``nn.Conv1d``.
        dropout_p: the probability that a neighbour's weight is zeroed (the others are scaled up), as in attention.
        source: the map ``(B, C_in, *sizes)``, without padding, whose tokens are the values, or None.
    """

    value: Tensor
    weight: Tensor | None
    bias: Tensor | None
    weighting: Weighting
    temperature: float
    groups: int
    dropout_p: float
    source: Tensor | None = None


class Problem(NamedTuple):
    """The problem for an implementation: a search, an aggregation of given neighbours, or both at once."""

    search: Search | None
    gather: Gather | None


class Choice(NamedTuple):
    """The implementation that runs, and the reason."""

    impl: str
    reason: str
