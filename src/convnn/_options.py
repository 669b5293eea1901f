"""The options of the operator: names, types, defaults and checks."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypedDict, TypeVar

from torch import Tensor

from . import _checks as checks
from .errors import unknown_name
from .maps import QueryGrid
from .types import WEIGHTINGS, Candidates, Gather, Similarity, Weighting

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class SearchOptions:
    """The keywords of ``knn_search``, which describes them, checked as far as they can be without tokens.

    Raises:
        ConvNNError: an option is not one that the operator has.

    Example:
        >>> SearchOptions(similarity="dot").candidates
        'all'
    """

    similarity: Similarity = "cosine"
    candidates: Candidates = "all"
    include_self: bool | None = None
    grid: tuple[int, ...] | None = None
    query_index: Tensor | QueryGrid | Literal["same"] | None = None
    key_padding_mask: Tensor | None = None
    deterministic: bool = False
    scale: float | None = None

    def __post_init__(self) -> None:
        checks.similarity(self.similarity)
        checks.candidates(self.candidates)
        if self.include_self is not None:
            checks.flag("include_self", self.include_self)
        checks.flag("deterministic", self.deterministic)
        checks.scale_of_dot(self.scale, self.similarity)


@dataclasses.dataclass(frozen=True)
class GatherOptions:
    """The keywords of ``knn_gather``, which describes them, checked as far as they can be without values.

    Raises:
        ConvNNError: an option is not one that the operator has.

    Example:
        >>> GatherOptions(weighting="softmax").temperature
        1.0
    """

    weighting: Weighting = "ones"
    temperature: float = 1.0
    groups: int = 1
    dropout_p: float = 0.0

    def __post_init__(self) -> None:
        checks.name("weighting", self.weighting, WEIGHTINGS)
        checks.temperature_of_softmax(self.temperature, self.weighting)
        checks.whole("groups", self.groups)
        checks.probability("dropout_p", self.dropout_p)

    def of(self, value: Tensor, weight: Tensor | None, bias: Tensor | None, *, source: Tensor | None = None) -> Gather:
        """Return the aggregation of values ``(B, M, C_in)`` with these options; see ``Gather``."""
        return Gather(value, weight, bias, self.weighting, self.temperature, self.groups, self.dropout_p, source)


class SearchKeywords(TypedDict, total=False):
    """The fields of ``SearchOptions`` as keywords of a call."""

    similarity: Similarity
    candidates: Candidates
    include_self: bool | None
    grid: tuple[int, ...] | None
    query_index: Tensor | QueryGrid | Literal["same"] | None
    key_padding_mask: Tensor | None
    deterministic: bool
    scale: float | None


class GatherKeywords(TypedDict, total=False):
    """The fields of ``GatherOptions`` as keywords of a call."""

    weighting: Weighting
    temperature: float
    groups: int
    dropout_p: float


class OperatorKeywords(SearchKeywords, GatherKeywords):
    """The keywords of the whole operator."""


class ChoiceKeywords(OperatorKeywords, total=False):
    """The keywords of ``explain_choice``, which are those of ``knn_aggregate`` or, with a layer, none."""

    k: int | None


def names_of(*kinds: Any) -> frozenset[str]:
    """Return the names of all fields of options.

    >>> sorted(names_of(GatherOptions))
    ['dropout_p', 'groups', 'temperature', 'weighting']
    """
    # Not dataclasses.fields, which a compiled graph cannot call.
    return frozenset(name for kind in kinds for name in kind.__dataclass_fields__)


def check_names(given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ConvNNError for a keyword that is not in ``allowed``, with the closest one."""
    names = frozenset(allowed)
    for name in given:
        if name not in names:
            raise unknown_name("option", name, sorted(names))


def build(kind: Callable[..., T], given: Mapping[str, Any]) -> T:
    """Make options of a kind from keywords; raises ConvNNError for a keyword that it does not have.

    >>> build(GatherOptions, {"groups": 2}).groups
    2
    """
    check_names(given, names_of(kind))
    return kind(**given)


def operator_options(given: Mapping[str, Any]) -> tuple[SearchOptions, GatherOptions]:
    """Divide the keywords of the whole operator between its two halves."""
    check_names(given, names_of(SearchOptions, GatherOptions))
    searching = names_of(SearchOptions)
    search = {name: value for name, value in given.items() if name in searching}
    gather = {name: value for name, value in given.items() if name not in searching}
    return SearchOptions(**search), GatherOptions(**gather)


def takes(*kinds: type, without: Iterable[str] = ()) -> Callable[[F], F]:
    """Show the fields of options, with their defaults, in a function's signature instead of ``**options``.

    >>> @takes(GatherOptions, without=("dropout_p",))
    ... def aggregate(value, **options): ...
    >>> str(inspect.signature(aggregate)).replace("'", "")
    '(value, *, weighting: Weighting = ones, temperature: float = 1.0, groups: int = 1)'
    """

    def show(function: F) -> F:
        signature = inspect.signature(function)
        listed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shown = {p.name for p in listed} | set(without)
        fields = [field for kind in kinds for field in dataclasses.fields(kind) if field.name not in shown]
        more = [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields
        ]
        function.__signature__ = signature.replace(parameters=listed + more)  # type: ignore[attr-defined]
        return function

    return show
