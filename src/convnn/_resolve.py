"""The arguments of a search, checked and resolved to the problem that every implementation takes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from . import _checks as checks
from ._options import SearchOptions
from .errors import invalid
from .maps import MapGeometry, QueryGrid
from .types import Candidates, Grid, Random, Search, Similarity, Window


def resolve(
    query: Tensor, key: Tensor, k: int | None, options: SearchOptions, geometry: MapGeometry | None = None
) -> Search:
    """Check the options against the tokens, fill in what was left out, and draw the random candidates.

    With a ``geometry`` the tokens are those of a map without its padding; ``query`` may be ``key`` itself, and then
    means the tokens of the query grid.
    """
    checks.tokens("query", query)
    checks.tokens("key", key)
    checks.same(("query", query), ("key", key), {0: "samples", 2: "channels"})
    similarity, query_index, key_padding_mask = options.similarity, options.query_index, options.key_padding_mask
    keys_grid = checks.grid(options.grid, key.shape[1]) if geometry is None else geometry.grid
    if geometry is not None:
        query_index = geometry.queries
    elif (isinstance(query_index, str) and query_index == "same") or (query_index is None and query is key):
        checks.same(("query", query), ("key", key), {1: "tokens (query_index='same')"})
        query_index = QueryGrid((0,) * len(keys_grid), keys_grid, (1,) * len(keys_grid))
    elif query_index is not None:
        checks.query_index(query_index, query.shape[1], keys_grid, device=key.device)
    among = _draw(options.candidates, keys_grid, key.device)
    if key_padding_mask is not None:
        checks.key_padding_mask(key_padding_mask, key)
        checks.some_key_left(key_padding_mask)
    if query_index is None:
        _check_positions_unneeded(similarity, among, bool(options.include_self))
    sampled = isinstance(among, Grid | Tensor) and query_index is not None
    include_self = sampled if options.include_self is None else options.include_self
    if sampled and not include_self:
        expected = "True or None (the query's own token is always slot 0 where candidates are listed)"
        raise invalid("include_self", expected, False, "leave it out, or use other candidates")
    count = _every(among, keys_grid) if k is None else checks.whole("k", k)
    queries = query.shape[1] if geometry is None else math.prod(geometry.queries.shape)
    _check_enough(count, among, keys_grid, queries, sampled=sampled)
    return Search(
        query=query, key=key, k=count, every=k is None and isinstance(among, str), similarity=similarity,
        scale=query.shape[2] ** -0.5 if options.scale is None else float(options.scale),
        candidates=among, include_self=include_self, grid=keys_grid,
        query_index=query_index, key_padding_mask=key_padding_mask, need_similarity=True,
        deterministic=options.deterministic or torch.are_deterministic_algorithms_enabled(),
        geometry=geometry,
    )  # fmt: skip


def _draw(
    candidates: Candidates, grid: tuple[int, ...], device: torch.device
) -> Literal["all"] | Grid | Window | Tensor:
    """Draw random candidates; return ``"all"`` for a set that has every token."""
    if isinstance(candidates, Tensor):
        checks.positions("candidates", candidates, math.prod(grid))
        # Sorting first makes a copy: the caller may change the tensor before the copy to a device is over.
        return candidates.to(torch.int64).sort().values.to(device, non_blocking=True)
    if isinstance(candidates, Random):
        return "all" if candidates.takes_all(grid) else candidates.draw(math.prod(grid), device)
    if isinstance(candidates, Grid) and candidates.takes_all(grid):
        return "all"
    return candidates


def _every(candidates: Literal["all"] | Grid | Window | Tensor, grid: tuple[int, ...]) -> int:
    """Return k for ``k=None``, the number of candidates, if it is the same for all queries."""
    if isinstance(candidates, str):
        return math.prod(grid)
    if isinstance(candidates, Window) and candidates.border == "shift":
        return math.prod(candidates.per_axis(len(grid))[0])
    expected = "a number (queries may differ in how many candidates they have)"
    raise invalid("k", expected, None, "give the number of neighbours")


def _check_positions_unneeded(similarity: Similarity, candidates: object, include_self: bool) -> None:
    """Raise ConvNNError for options that need the queries' positions where the queries are not keys."""
    for argument, needs in (
        ("similarity", not isinstance(similarity, str) or similarity == "spatial"),
        ("candidates", isinstance(candidates, Window)),
        ("include_self", include_self),
    ):
        if needs:
            got = {"similarity": similarity, "candidates": candidates, "include_self": include_self}[argument]
            fix = "pass query_index: 'same' if query i is key i, or the queries' positions among the keys"
            expected = "one that needs no positions (query and key are not the same tensor)"
            raise invalid(argument, expected, got, fix)


def _check_enough(
    k: int, candidates: Literal["all"] | Grid | Window | Tensor, grid: tuple[int, ...], queries: int, *, sampled: bool
) -> None:
    """Raise ConvNNError for a k above any query's candidates; the search itself counts borders and masks."""
    # The messages are written only when they are needed: to write a size would fix it in a compiled graph.
    keys = math.prod(grid)
    if isinstance(candidates, str):
        if k > keys:
            fix = "lower k, pass more tokens, or add padding"
            raise checks.too_few(k, keys, what=f"there are {keys} keys", fix=fix)
    elif isinstance(candidates, Window):
        window = math.prod(candidates.per_axis(len(grid))[0])
        if k > min(window, keys):
            what = f"the window holds {window} tokens"
            raise checks.too_few(k, min(window, keys), what=what, fix="lower k or enlarge the window")
    else:
        count = candidates.shape[0] if isinstance(candidates, Tensor) else candidates.g ** len(grid)
        # Slot 0 is the token itself, which is no candidate of its own; some query is a candidate if they must overlap.
        overlap = 1 if queries + count > keys else 0
        available = count + 1 - overlap if sampled else count
        if k > available:
            what = f"{count} candidates" + (", and itself in slot 0" if sampled else "")
            raise checks.too_few(k, available, what=what, fix="lower k or ask for more candidates")
