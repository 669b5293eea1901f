"""The options of the layers, frozen and checked where they are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from .. import _checks as checks
from .._options import GatherOptions, SearchOptions
from ..errors import invalid
from ..knn import check_impl
from ..types import Blend, Candidates, Similarity, Weighting

AGGREGATIONS = ("standard", "depthwise", "depthwise_separable", "sum")


class Positions(NamedTuple):
    """Positions of candidates as numbers: moving, loading, averaging or emptying tensors cannot change them."""

    numbers: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """The options of a layer's search and aggregation; the layers' docstrings describe each.

    Raises:
        ConvNNError: an option is not one that the operator has, or does not go with another.

    Example:
        >>> import torch
        >>> LayerOptions(k=4, candidates=torch.tensor([0, 3])).candidates.numbers
        (0, 3)
    """

    k: int | None = 9
    similarity: Similarity = "cosine"
    candidates: Candidates | Positions = "all"
    include_self: bool | None = None
    weighting: Weighting = "ones"
    aggregation: str = "standard"
    temperature: float = 1.0
    scale: float | None = None
    impl: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.candidates, Positions):
            checks.candidates(self.candidates)
        if isinstance(self.candidates, Tensor):
            object.__setattr__(self, "candidates", _numbers(self.candidates))
        checks.name("aggregation", self.aggregation, AGGREGATIONS)
        check_impl(self.impl)
        self._check_k()
        self.search(self.candidates if not isinstance(self.candidates, Positions) else "all")
        self.gather()

    def _check_k(self) -> None:
        if self.k is None and self.aggregation != "sum":
            fix = "give a number, or use aggregation='sum'"
            raise invalid("k", f"a number (aggregation={self.aggregation!r} has one weight per slot)", None, fix)
        if isinstance(self.k, tuple | list):
            fix = "give a kernel's number of taps, e.g. 9 for (3, 3)"
            raise invalid("k", "a whole number of neighbours", self.k, fix)
        if self.k is not None:
            checks.whole("k", self.k)

    def search(self, candidates: Candidates, **of_input: Any) -> SearchOptions:
        """Return the options of a search among ``candidates``, with those of an input."""
        return SearchOptions(self.similarity, candidates, self.include_self, scale=self.scale, **of_input)

    def gather(self, groups: int = 1, dropout_p: float = 0.0) -> GatherOptions:
        """Return the options of an aggregation."""
        return GatherOptions(self.weighting, self.temperature, groups, dropout_p)

    def check_trains(self, argument: str) -> None:
        """Raise ConvNNError for a projection or a norm of queries and keys that would have no gradient."""
        similarity, fix = self.similarity, f"leave {argument} out, or use weighting='softmax' or 'identity'"
        if self.weighting == "ones":
            reason = "similarities then only choose, and no gradient flows through a choice"
            raise invalid(argument, f"False with weighting='ones' ({reason})", True, fix)
        if similarity == "spatial" or (isinstance(similarity, Blend) and similarity.lam == 0):
            expected = f"False with similarity={similarity!r} (which compares positions alone)"
            raise invalid(argument, expected, True, f"leave {argument} out, or compare features")
        if self.weighting == "softmax" and self.k == 1:
            expected = "False with k=1 and weighting='softmax' (the weight of a single neighbour is always 1)"
            raise invalid(argument, expected, True, f"leave {argument} out, or raise k")


@dataclasses.dataclass(frozen=True)
class ConvNNOptions(LayerOptions):
    """The options of ``ConvNN*d``, which describes them.

    Raises:
        ConvNNError: as of ``LayerOptions``.

    Example:
        >>> ConvNNOptions().include_self
        True
    """

    projection: bool = False
    value_coordinates: bool = False
    unshuffle: int = 1
    shuffle: int = 1
    query_margin: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.include_self is None and self.similarity != "spatial":
            object.__setattr__(self, "include_self", True)
        super().__post_init__()
        checks.flag("value_coordinates", self.value_coordinates)
        checks.whole("unshuffle", self.unshuffle)
        checks.whole("shuffle", self.shuffle)
        if checks.flag("projection", self.projection):
            self.check_trains("projection")


@dataclasses.dataclass(frozen=True)
class HeadsOptions(LayerOptions):
    """The options of the attention layers, which describe them.

    Raises:
        ConvNNError: as of ``LayerOptions``.

    Example:
        >>> HeadsOptions().weighting
        'softmax'
    """

    similarity: Similarity = "dot"
    weighting: Weighting = "softmax"
    aggregation: str = "depthwise"


class LayerKeywords(TypedDict, total=False):
    """The fields of ``LayerOptions`` but k as keywords of a call."""

    similarity: Similarity
    candidates: Candidates
    include_self: bool | None
    weighting: Weighting
    aggregation: str
    temperature: float
    scale: float | None
    impl: str


class HeadsKeywords(LayerKeywords, total=False):
    """The fields of ``HeadsOptions`` as keywords of a call."""

    k: int | None


class ConvNNKeywords(LayerKeywords, total=False):
    """The fields of ``ConvNNOptions`` but k as keywords of a call."""

    projection: bool
    value_coordinates: bool
    unshuffle: int
    shuffle: int
    query_margin: int | tuple[int, ...] | None


class HybridKeywords(LayerKeywords, total=False):
    """The fields of ``ConvNNOptions`` as keywords of a hybrid's constructor, without those that the kernel decides."""

    k: int | None
    projection: bool
    value_coordinates: bool
    unshuffle: int
    shuffle: int


def _numbers(positions: Tensor) -> Positions:
    """Return the positions as numbers; raises ConvNNError for a meta tensor, which has none."""
    if positions.is_meta:
        fix = 'make them where they have values, e.g. torch.arange(9, device="cpu")'
        raise invalid("candidates", "positions with values", "a tensor on the meta device", fix)
    return Positions(tuple(positions.tolist()))


def options_repr(options: Mapping[str, tuple[object, object]]) -> str:
    """Write ``, name=value`` for every option whose value is not its default.

    >>> options_repr({"stride": (2, 1), "groups": (1, 1)})
    ', stride=2'
    """
    return "".join(f", {name}={value!r}" for name, (value, default) in options.items() if value != default)


def kwargs_repr(options: Mapping[str, object]) -> str:
    """Write ``, name=value`` for every option; a tensor as the call that makes it."""
    written = {name: f"tensor({v.tolist()})" if isinstance(v, Tensor) else repr(v) for name, v in options.items()}
    return "".join(f", {name}={value}" for name, value in written.items())
