"""The operator: k-nearest-neighbour aggregation. Convolution and self-attention are special cases of it.

    S[b,i,j] = sim(query[b,i], key[b,j])
    I[b,i]   = the k candidates j with the largest S[b,i,j], and s[b,i] their similarities      (knn_search)
    Y[b,i]   = bias + sum over slots m of  W_m (rho(s[b,i])_m * value[b, I[b,i,m]])             (knn_gather)

Kang and Sales Rocha Neto, "Attention Via Convolutional Nearest Neighbors", arXiv 2511.14137, section 3.
"""

from __future__ import annotations

from typing import NamedTuple, Unpack

from torch import Tensor, nn

from . import _checks as checks
from ._options import (
    ChoiceKeywords,
    GatherKeywords,
    GatherOptions,
    OperatorKeywords,
    SearchKeywords,
    SearchOptions,
    build,
    operator_options,
    takes,
)
from ._resolve import resolve
from ._tracing import one_node
from .errors import invalid
from .impl import choose
from .maps import MapGeometry
from .types import Choice, Gather, Neighbors, Problem, Search

check_impl = choose.check


@takes(SearchOptions)
@one_node
def knn_search(
    query: Tensor, key: Tensor, k: int | None, *, impl: str = "auto", **options: Unpack[SearchKeywords]
) -> Neighbors:
    """Find the k most similar keys of every query, exactly.

    Similarities of half-precision inputs are computed and compared in float32, others in their own precision. No
    gradient flows through the choice; it flows through the k similarities, to queries and keys. NaN
    similarities rank first, as in ``torch.topk``, so NaNs propagate to every output of their sample. A sample's
    neighbours never depend on another's.

    Args:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        k: neighbours, 1 to M, or None for every candidate (of ``"all"`` and of shifted windows).
        impl: ``"auto"``, or the implementation to run.
        similarity: ``"cosine"`` (default), ``"dot"``, ``"sqeuclidean"``, ``"euclidean"``, ``"spatial"`` or
            ``Blend(lam)``; larger is nearer, distances are negated.
        candidates: ``"all"`` (default), ``Random(r)``, ``Grid(g)``, ``Window(size)``, or positions ``(r,)`` among the
            keys. Under ``Random``, ``Grid`` and positions, slot 0 is the query's own token wherever queries are keys.
        include_self: slot 0 is the query's own token, the other k - 1 slots are chosen among the others. Left out: as
            the candidates imply; False raises ConvNNError where they imply True.
        grid: sizes of the map whose tokens, in raster order, are the keys; ``(M,)`` if left out.
        query_index: the queries' positions among the keys, ``(N,)`` or a ``QueryGrid``; ``"same"``: query i is key i.
            Left out, it is ``"same"`` if ``query`` and ``key`` are the same tensor, and the queries are no keys
            (cross-attention) otherwise.
        key_padding_mask: ``(B, M)`` boolean, True for keys that may not be neighbours.
        deterministic: take equal similarities lowest index first (also under
            ``torch.use_deterministic_algorithms``).
        scale: the factor of ``"dot"``; ``1/sqrt(C)`` if left out.

    Returns:
        ``Neighbors(similarity (B, N, k), index (B, N, k))``, in slot order: by descending similarity, or in raster
        order if it is spatial.

    Raises:
        ConvNNError: an argument does not fit; the message has its name, its value, what is allowed and the fix.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]])
        >>> knn_search(tokens, tokens, k=2).index
        tensor([[[0, 1],
                 [1, 0],
                 [2, 1]]])
    """
    return search_with(build(SearchOptions, options), query, key, k, impl=impl)


@takes(GatherOptions)
@one_node
def knn_gather(
    value: Tensor,
    neighbors: Neighbors,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    impl: str = "auto",
    **options: Unpack[GatherKeywords],
) -> Tensor:
    """Aggregate the values of given neighbours: ``Y = bias + sum_m W_m (rho_m * value[index_m])``.

    Args:
        value: ``(B, M, C_in)``.
        neighbors: of ``knn_search``; similarity and index ``(B, N, k)``, the index into the M values.
        weight: ``(C_out, C_in/groups, k)``, as of an ``nn.Conv1d`` with kernel k; None for unit weights (a sum).
        bias: ``(C_out,)``.
        impl: ``"auto"``, or the implementation to run.
        weighting: ``"ones"`` (convolution; default), ``"identity"`` (the similarities), ``"softmax"`` (attention).
        temperature: the similarities' divisor under ``"softmax"``; 1 if left out.
        groups: as in ``nn.Conv1d``; C_in for a depthwise aggregation.
        dropout_p: the probability that a neighbour's weight is zeroed, as in attention; 0 if left out.

    Returns:
        ``(B, N, C_out)`` in the values' dtype.

    Raises:
        ConvNNError: an argument does not fit.

    Example:
        >>> import torch
        >>> value = torch.tensor([[[1.0], [10.0], [100.0]]])
        >>> nearest = Neighbors(torch.zeros(1, 3, 2), torch.tensor([[[0, 1], [1, 0], [2, 1]]]))
        >>> knn_gather(value, nearest).flatten()
        tensor([ 11.,  11., 110.])
    """
    return gather_with(build(GatherOptions, options), value, neighbors, weight, bias, impl=impl)


@takes(GatherOptions, SearchOptions)
@one_node
def knn_aggregate(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    k: int | None,
    impl: str = "auto",
    **options: Unpack[OperatorKeywords],
) -> Tensor:
    """Search and gather in one call: the whole operator.

    Args:
        query: ``(B, N, C)``.
        key: ``(B, M, C)``.
        value: ``(B, M, C_in)``.
        weight: ``(C_out, C_in/groups, k)``, or None for unit weights.
        bias: ``(C_out,)``.
        k: neighbours, or None for every candidate that is not masked.
        impl: ``"auto"``, or the implementation to run; see ``explain_choice``.
        **options: the keywords of ``knn_search`` (``similarity``, ``candidates``, ``include_self``, ``grid``, ...) and
            of ``knn_gather`` (``weighting``, ``temperature``, ``groups``, ``dropout_p``).

    Returns:
        ``(B, N, C_out)``.

    Raises:
        ConvNNError: an argument does not fit.

    Example:
        Self-attention, and its k-nearest-neighbour form:

        >>> import torch
        >>> q, k, v = torch.randn(3, 1, 16, 8).unbind()
        >>> attention = knn_aggregate(q, k, v, k=16, similarity="dot", weighting="softmax")
        >>> torch.allclose(attention, torch.nn.functional.scaled_dot_product_attention(q, k, v), atol=1e-6)
        True
        >>> knn_aggregate(q, k, v, k=4, similarity="dot", weighting="softmax").shape
        torch.Size([1, 16, 8])
    """
    search, gather = operator_options(options)
    return aggregate(Call(query, key, gather.of(value, weight, bias), k, impl, search))


class Call(NamedTuple):
    """A call of ``knn_aggregate``: queries, keys, the aggregation, and the options of the search.

    Attributes:
        query: ``(B, N, C)``; with a ``geometry`` it may be ``key`` itself.
        key: ``(B, M, C)``.
        gather: values and slot weights.
        k: neighbours, or None for every candidate.
        impl: ``"auto"``, or the implementation to run.
        search: options of the search.
        geometry: the map whose tokens, without padding, are given, or None.
    """

    query: Tensor
    key: Tensor
    gather: Gather
    k: int | None
    impl: str
    search: SearchOptions
    geometry: MapGeometry | None = None


def gather_weighted(value: Tensor, neighbors: Neighbors, weight: Tensor | None, *, groups: int, impl: str) -> Tensor:
    """Aggregate the values ``(B, M, C_in)`` of neighbours, whose similarities are their weights.

    The neighbours are those of the layer's own search: nothing is checked again.
    """
    return choose.run_gather(impl, Gather(value, weight, None, "identity", 1.0, groups, 0.0), neighbors)


def aggregate(call: Call, *, writable: bool = True) -> Tensor:
    """Run the operator for a layer: tokens ``(B, N, C_out)``, or with a geometry a map ``(B, C_out, *queries)``.

    Unless ``writable``, the backward pass may read the result, which must not be modified in place.
    """
    return choose.run_aggregate(call.impl, *_resolved(call), writable=writable)


def gather_with(
    options: GatherOptions,
    value: Tensor,
    neighbors: Neighbors,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    impl: str,
) -> Tensor:
    """Aggregate as ``knn_gather`` does, with options that exist already."""
    choose.check(impl)
    checks.tokens("value", value)
    checks.neighbors(neighbors, value)
    problem = options.of(value, weight, bias)
    checks.gather(problem, neighbors.index.shape[2])
    return choose.run_gather(impl, problem, neighbors)


def search_with(
    options: SearchOptions, query: Tensor, key: Tensor, k: int | None, geometry: MapGeometry | None = None, *, impl: str
) -> Neighbors:
    """Search as ``knn_search`` does, with options that exist already; query, key and geometry as in ``Call``."""
    choose.check(impl)
    problem = resolve(query, key, k, options, geometry)
    if problem.every and problem.key_padding_mask is not None:
        raise invalid("k", "a number where keys are masked", None, "give the number of neighbours to return")
    return _contiguous_index(choose.run_search(impl, problem))


def explain(call: Call) -> Choice:
    """Return which implementation ``aggregate`` would run, and why; runs nothing."""
    return choose.choose(call.impl, Problem(*_resolved(call)))[1]


@takes(GatherOptions, SearchOptions)
def explain_choice(
    query: Tensor | nn.Module,
    key: Tensor,
    value: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    impl: str = "auto",
    **options: Unpack[ChoiceKeywords],
) -> Choice:
    """Return which implementation ``knn_aggregate`` would run for these arguments, and why; runs nothing.

    ``explain_choice(layer, x)`` returns the implementation that a layer would run for an input.

    Example:
        >>> import torch
        >>> tokens = torch.zeros(1, 16, 8)
        >>> explain_choice(tokens, tokens, tokens, k=None, similarity="dot", weighting="softmax").impl
        'sdpa'
        >>> import convnn
        >>> explain_choice(convnn.ConvNN2d(4, 4, candidates=convnn.Random(9)), torch.zeros(1, 4, 8, 8)).impl
        'project_first'
    """
    if isinstance(query, nn.Module):
        explain_layer = getattr(query, "explain_choice", None)
        if explain_layer is None or value is not None or options or impl != "auto":
            expected = "a layer of convnn and its input, or the arguments of knn_aggregate"
            raise invalid("layer", expected, type(query).__name__, "pass such a layer")
        choice: Choice = explain_layer(key)
        return choice
    if value is None or "k" not in options:
        raise invalid("k" if value is not None else "value", "what knn_aggregate takes", "nothing", "give it")
    k = options.pop("k")
    search, gather = operator_options(options)
    return explain(Call(query, key, gather.of(value, weight, bias), k, impl, search))


def _contiguous_index(neighbors: Neighbors) -> Neighbors:
    """Return neighbours whose index may be modified: all samples share one copy of spatial neighbours until here."""
    return neighbors._replace(index=neighbors.index.contiguous())


def _resolved(call: Call) -> tuple[Search, Gather]:
    choose.check(call.impl)
    gather, problem = call.gather, resolve(call.query, call.key, call.k, call.search, call.geometry)
    checks.tokens("value", gather.value)
    checks.same(("key", call.key), ("value", gather.value), {0: "samples", 1: "tokens"})
    checks.gather(gather, problem.k)
    if problem.every and problem.key_padding_mask is not None and gather.weighting != "softmax":
        raise invalid("k", "a number where keys are masked (None needs softmax)", None, "give the number of neighbours")
    return problem._replace(need_similarity=gather.weighting != "ones"), gather
