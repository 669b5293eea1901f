"""THE operator: k-nearest-neighbour aggregation, of which convolution and self-attention are special cases.

    S[b,i,j] = sim(query[b,i], key[b,j])
    I[b,i]   = the k candidates j with the largest S[b,i,j], and s[b,i] their similarities      (knn_search)
    Y[b,i]   = bias + sum over slots m of  W_m (rho(s[b,i])_m * value[b, I[b,i,m]])             (knn_gather)

Kang and Sales Rocha Neto, "Attention Via Convolutional Nearest Neighbors", arXiv 2511.14137, section 3.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from . import checks
from .errors import invalid
from .impl import choose
from .types import Candidates, Choice, Gather, Grid, Lattice, Neighbors, Random, Search, Similarity, Weighting, Window


def knn_search(
    query: Tensor,
    key: Tensor,
    k: int | None,
    *,
    similarity: Similarity = "cosine",
    candidates: Candidates = "all",
    include_self: bool = False,
    grid: tuple[int, ...] | None = None,
    query_index: Tensor | Lattice | None = None,
    key_padding_mask: Tensor | None = None,
    generator: torch.Generator | int | None = None,
    deterministic: bool = False,
    scale: float | None = None,
    impl: str = "auto",
) -> Neighbors:
    """Find the k most similar keys of every query, exactly.

    Similarities of half-precision inputs are computed and compared in float32, others in their own precision. No
    gradient flows through the choice; it flows through the k similarities, to queries and keys. A nan similarity
    counts as the largest (as in ``torch.topk``), so that a nan token shows in every result of its sample instead of
    hiding; a sample's neighbours never depend on another's.

    Args:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        k: neighbours, 1 to M, or None for every key.
        similarity: ``"cosine"``, ``"dot"``, ``"sqeuclidean"``, ``"euclidean"``, ``"spatial"`` or ``Blend(lam)``; larger
            is nearer, distances are negated.
        candidates: ``"all"``, ``Random(r)``, ``Grid(g)``, ``Window(size)``, or positions ``(r,)`` among the keys. Under
            ``Random``, ``Grid`` and positions, slot 0 is the query's own token wherever the queries are keys.
        include_self: slot 0 is the query's own token, the other k - 1 slots are chosen among the others.
        grid: sizes of the map of which the keys are the tokens in raster order; ``(M,)`` if left out.
        query_index: where the queries stand among the keys, ``(N,)`` or a ``Lattice``. Left out, query i is key i
            if N = M, and the queries are no keys (cross-attention) otherwise.
        key_padding_mask: ``(B, M)`` boolean, True for keys that may not be neighbours.
        generator: a ``torch.Generator`` or a seed for ``Random``.
        deterministic: take equal similarities lowest index first (also under
            ``torch.use_deterministic_algorithms``).
        scale: the factor of ``"dot"``; ``1/sqrt(C)`` if left out.
        impl: ``"auto"``, or the implementation to run.

    Returns:
        ``Neighbors(similarity (B, N, k), index (B, N, k))``, in slot order: by descending similarity, or in raster
        order if it is spatial.

    Raises:
        ConvNNError: an argument does not fit; the message names it, what it was, what is allowed and the fix.

    Example:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]])
        >>> knn_search(tokens, tokens, k=2).index
        tensor([[[0, 1],
                 [1, 0],
                 [2, 1]]])
    """
    checks.impl(impl)
    problem = _search(query, key, k, similarity=similarity, candidates=candidates, include_self=include_self,
                      grid=grid, query_index=query_index, key_padding_mask=key_padding_mask, generator=generator,
                      deterministic=deterministic, scale=scale)  # fmt: skip
    if problem.every and key_padding_mask is not None:
        raise invalid("k", "a number where keys are masked", None, "give the number of neighbours to return")
    return choose.run_search(impl, problem)


def knn_gather(
    value: Tensor,
    neighbors: Neighbors,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    weighting: Weighting = "ones",
    temperature: float = 1.0,
    groups: int = 1,
    dropout_p: float = 0.0,
    impl: str = "auto",
) -> Tensor:
    """Aggregate the values of given neighbours: ``Y = bias + sum_m W_m (rho_m * value[index_m])``.

    Args:
        value: ``(B, M, C_in)``.
        neighbors: of ``knn_search``; similarity and index ``(B, N, k)``, the index into the M values.
        weight: ``(C_out, C_in/groups, k)``, as of an ``nn.Conv1d`` with kernel k; None for unit weights (a sum).
        bias: ``(C_out,)``.
        weighting: ``"ones"`` (convolution), ``"identity"`` (the similarities), ``"softmax"`` (attention).
        temperature: the similarities' divisor under ``"softmax"``.
        groups: as in ``nn.Conv1d``; C_in for a depthwise aggregation.
        dropout_p: the chance that a neighbour's weight is zeroed, as in attention.
        impl: ``"auto"``, or the implementation to run.

    Returns:
        ``(B, N, C_out)`` in the values' dtype.

    Raises:
        ConvNNError: an argument does not fit.

    Example:
        >>> value = torch.tensor([[[1.0], [10.0], [100.0]]])
        >>> nearest = Neighbors(torch.zeros(1, 3, 2), torch.tensor([[[0, 1], [1, 0], [2, 1]]]))
        >>> knn_gather(value, nearest).flatten()
        tensor([ 11.,  11., 110.])
    """
    checks.impl(impl)
    checks.tokens("value", value)
    checks.neighbors(neighbors, value)
    problem = Gather(value, weight, bias, weighting, temperature, groups, dropout_p)
    checks.gather(problem, neighbors.index.shape[2])
    return choose.run_gather(impl, problem, neighbors)


def knn_aggregate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    k: int | None,
    weighting: Weighting = "ones",
    temperature: float = 1.0,
    groups: int = 1,
    dropout_p: float = 0.0,
    impl: str = "auto",
    **search: Any,
) -> Tensor:
    """Search and gather in one call: the whole operator.

    Args:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        value: ``(B, M, C_in)``.
        weight: ``(C_out, C_in/groups, k)``, or None for unit weights.
        bias: ``(C_out,)``.
        k: neighbours, or None for every key that is not masked.
        weighting: as in ``knn_gather``, and so are ``temperature``, ``groups``, ``dropout_p``.
        temperature: see ``knn_gather``.
        groups: see ``knn_gather``.
        dropout_p: see ``knn_gather``.
        impl: ``"auto"``, or the implementation to run; see ``explain_choice``.
        **search: the keywords of ``knn_search``: ``similarity``, ``candidates``, ``include_self``, ``grid``, ...

    Returns:
        ``(B, N, C_out)``.

    Raises:
        ConvNNError: an argument does not fit.

    Example:
        Self-attention, and its k-nearest-neighbour form:

        >>> q, k, v = torch.randn(3, 1, 16, 8).unbind()
        >>> attention = knn_aggregate(q, k, v, k=16, similarity="dot", weighting="softmax")
        >>> torch.allclose(attention, torch.nn.functional.scaled_dot_product_attention(q, k, v), atol=1e-6)
        True
        >>> knn_aggregate(q, k, v, k=4, similarity="dot", weighting="softmax").shape
        torch.Size([1, 16, 8])
    """
    gather = Gather(value, weight, bias, weighting, temperature, groups, dropout_p)
    return choose.run_aggregate(impl, *_aggregate(query, key, k, gather, impl, search))


def explain_choice(
    query: Tensor, key: Tensor, value: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, **options: Any
) -> Choice:
    """Say which implementation ``knn_aggregate`` would run for these arguments, and why; runs nothing.

    Example:
        >>> tokens = torch.zeros(1, 16, 8)
        >>> explain_choice(tokens, tokens, tokens, k=None, similarity="dot", weighting="softmax")
        Choice(impl='sdpa', reason='this is attention, which has a native kernel')
    """
    defaults = {"weighting": "ones", "temperature": 1.0, "groups": 1, "dropout_p": 0.0}
    gather = Gather(value, weight, bias, **{name: options.pop(name, default) for name, default in defaults.items()})
    impl, k = options.pop("impl", "auto"), options.pop("k", None)
    return choose.choose_impl(impl, *_aggregate(query, key, k, gather, impl, options))


def _aggregate(
    query: Tensor, key: Tensor, k: int | None, gather: Gather, impl: str, options: dict[str, Any]
) -> tuple[Search, Gather]:
    checks.impl(impl)
    unknown = options.keys() - _SEARCH_OPTIONS
    if unknown:
        raise checks.unknown_name("keyword", sorted(unknown)[0], sorted(_SEARCH_OPTIONS))
    search = _search(query, key, k, **options)
    checks.tokens("value", gather.value)
    checks.alike(("key", key), ("value", gather.value), {0: "samples", 1: "tokens"})
    checks.gather(gather, search.k)
    if search.every and search.key_padding_mask is not None and gather.weighting != "softmax":
        raise invalid("k", "a number where keys are masked (None needs softmax)", None, "give the number of neighbours")
    return search._replace(need_similarity=gather.weighting != "ones"), gather


_SEARCH_OPTIONS = frozenset(
    {
        "similarity",
        "candidates",
        "include_self",
        "grid",
        "query_index",
        "key_padding_mask",
        "generator",
        "deterministic",
        "scale",
    }
)


def _search(
    query: Tensor,
    key: Tensor,
    k: int | None,
    *,
    similarity: Similarity = "cosine",
    candidates: Candidates = "all",
    include_self: bool = False,
    grid: tuple[int, ...] | None = None,
    query_index: Tensor | Lattice | None = None,
    key_padding_mask: Tensor | None = None,
    generator: torch.Generator | int | None = None,
    deterministic: bool = False,
    scale: float | None = None,
) -> Search:
    """Check every argument, fill in what was left out, and draw the random candidates."""
    checks.tokens("query", query)
    checks.tokens("key", key)
    checks.alike(("query", query), ("key", key), {0: "samples", 2: "channels"})
    checks.similarity(similarity)
    keys_grid = checks.grid(grid, key.shape[1])
    if query_index is None and query.shape[1] == key.shape[1]:
        query_index = Lattice((0,) * len(keys_grid), keys_grid, (1,) * len(keys_grid))
    elif query_index is not None:
        checks.query_index(query_index, query.shape[1], keys_grid)
    checks.candidates(candidates)
    if generator is not None:
        checks.generator(generator, candidates)
    drawn = _draw(candidates, keys_grid, key, generator)
    if key_padding_mask is not None:
        checks.key_padding_mask(key_padding_mask, key)
    if query_index is None:
        _check_positions_unneeded(similarity, drawn, include_self)
    sampled = isinstance(drawn, Grid | Tensor) and query_index is not None
    count = key.shape[1] if k is None else checks.whole("k", k)
    _check_enough(count, drawn, keys_grid, query, sampled=sampled)
    return Search(
        query=query, key=key, k=count, every=k is None, similarity=similarity,
        scale=query.shape[2] ** -0.5 if scale is None else checks.number("scale", scale),
        candidates=drawn, include_self=bool(include_self) or sampled, grid=keys_grid, query_index=query_index,
        key_padding_mask=key_padding_mask, need_similarity=True,
        deterministic=deterministic or torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip


def _draw(
    candidates: Candidates, grid: tuple[int, ...], key: Tensor, generator: torch.Generator | int | None
) -> Literal["all"] | Grid | Window | Tensor:
    """Turn random candidates into positions, and what asks for more candidates than there are into all."""
    if isinstance(candidates, Tensor):
        checks.positions("candidates", candidates, key.shape[1])
        return candidates.to(key.device, torch.int64).sort().values
    if isinstance(candidates, Random):
        spec = candidates if generator is None else Random(candidates.r, generator)
        return "all" if spec.r > key.shape[1] else spec.draw(key.shape[1], key.device)
    if isinstance(candidates, Grid) and candidates.g > min(grid):
        return "all"
    return candidates


def _check_positions_unneeded(similarity: Similarity, candidates: object, include_self: bool) -> None:
    """Refuse what compares positions or takes the query's own token where the queries are not keys."""
    for argument, needs in (
        ("similarity", not isinstance(similarity, str) or similarity == "spatial"),
        ("candidates", isinstance(candidates, Window)),
        ("include_self", include_self),
    ):
        if needs:
            got = {"similarity": similarity, "candidates": candidates, "include_self": include_self}[argument]
            fix = "pass query_index, the queries' positions among the keys"
            raise invalid(argument, "one that needs no positions (N differs from M: the queries are no keys)", got, fix)


def _check_enough(
    k: int, candidates: Literal["all"] | Grid | Window | Tensor, grid: tuple[int, ...], query: Tensor, *, sampled: bool
) -> None:
    """Refuse a k above what any query can have; borders and masks are counted by the search itself."""
    keys = math.prod(grid)
    if isinstance(candidates, str):
        checks.enough(k, keys, f"there are {keys} keys", "lower k, pass more tokens, or add padding")
        return
    if isinstance(candidates, Window):
        window = math.prod(candidates.per_axis(len(grid))[0])
        checks.enough(k, min(window, keys), f"the window holds {window} tokens", "lower k or enlarge the window")
        return
    count = candidates.shape[0] if isinstance(candidates, Tensor) else candidates.g ** len(grid)
    # Slot 0 is the token itself, which is no candidate of its own; some query is a candidate if they must overlap.
    overlap = query.shape[1] + count > keys
    available = count + 1 - overlap if sampled else count
    what = f"{count} candidates" + (", and itself in slot 0" if sampled else "")
    checks.enough(k, available, what, "lower k or ask for more candidates")
