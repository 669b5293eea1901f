"""The search and the aggregation of bounded memory, by custom operators, for the implementations that share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import _plan as plan
from . import native
from ._precision import autocast_dtype, search_dtype, without_autocast
from .ops import native as native_ops
from .ops import short_softmax
from .ops.bags import bag_sum, pair_distance, pair_product
from .ops.euclidean import nearest_euclidean
from .ops.nearest import nearest
from .ops.sampled import sampled_mix
from .ops.slots import slot_mix
from .stages import select, similarity
from .types import Gather, Neighbors, Problem, Search


class Operators(NamedTuple):
    """The operators of one kind: what they compute is the same."""

    nearest: Callable[..., Tensor]
    nearest_euclidean: Callable[..., Tensor]
    slot_mix: Callable[..., Tensor]
    sampled_mix: Callable[..., Tensor]
    bag_sum: Callable[..., Tensor]
    pair_product: Callable[..., Tensor]
    pair_distance: Callable[..., Tensor]


PLAIN = Operators(nearest, nearest_euclidean, slot_mix, sampled_mix, bag_sum, pair_product, pair_distance)
NATIVE = Operators(
    native_ops.native_nearest,
    native_ops.native_nearest_euclidean,
    native_ops.native_slot_mix,
    native_ops.native_sampled_mix,
    native_ops.native_bag_sum,
    native_ops.native_pair_product,
    native_ops.native_pair_distance,
)


def why_not_native(problem: Problem) -> str | None:
    """Return why the native operators cannot run a problem, or None; reads shapes and options only."""
    search, gather = problem
    absent = _why_no_library()
    if absent is not None:
        return f"the native library is not used: {absent}"
    if search is not None and search.k > native_ops.MOST_K and search.similarity != "spatial":
        return f"it finds at most {native_ops.MOST_K} neighbours"
    for tokens in (None if search is None else search.query, None if gather is None else gather.value):
        if tokens is not None and tokens.device.type != "cpu":
            return f"it runs on CPUs, not on {tokens.device.type}"
        if tokens is not None and tokens.dtype == torch.float64:
            return "it computes in float32"
    return None


# Dynamo cannot trace how the library is loaded, and does not need to: it does not change.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_no_library() -> str | None:
    return native.why_not()


def neighbors(problem: Search, operators: Operators = PLAIN) -> Neighbors:
    """Find the k neighbours of every query, some queries at a time."""
    if problem.similarity == "spatial":
        return plan.search_spatial(problem)
    with without_autocast(problem.query.device):
        compared, self_index = plan.compared(problem), plan.query_positions(problem)
        with torch.no_grad():
            index = _select(problem, compared, plan.candidate_table(problem, self_index), self_index, operators)
        if not problem.need_similarity:
            return plan.without_similarity(problem, index)
        pairs = similarity.pairwise(
            compared, index, problem.scale, product=operators.pair_product, distance=operators.pair_distance
        )
        return plan.in_slot_order(problem, pairs, index)


def gather(problem: Gather, found: Neighbors, operators: Operators = PLAIN) -> Tensor:
    """Aggregate neighbours by weighted sums of rows: ``(B, N, C_out)``."""
    rho = plan.rho_with_dropout(problem, found.similarity, short_softmax)
    if problem.weight is None:
        value = problem.value
        mixed: Tensor = operators.bag_sum(value, found.index, None if rho is None else rho.to(value.dtype))
    else:
        dtype = autocast_dtype(problem.value)
        value, weight = problem.value.to(dtype), problem.weight.to(dtype)
        rho = None if rho is None else rho.to(dtype)
        mixed = operators.slot_mix(value, weight, found.index, rho, problem.groups)
    return mixed if problem.bias is None else mixed + problem.bias.to(mixed.dtype)


def among_candidates(problem: Search, operators: Operators = PLAIN) -> Tensor:
    """Find the neighbours other than the query itself: indices ``(B, N, k - 1)`` into the list of candidates."""
    with without_autocast(problem.query.device), torch.no_grad():
        self_index = plan.query_positions(problem)
        keys = plan.candidate_table(problem, self_index).keys
        return _among_all(problem, plan.compared(problem), keys, self_index, operators)


def among_tokens(problem: Search, candidates: Tensor, operators: Operators = PLAIN) -> Tensor:
    """Search as ``among_candidates`` does, with the candidates' features ``(B, r, C)``."""
    dtype = search_dtype(problem.query.dtype)
    with without_autocast(problem.query.device), torch.no_grad():
        self_index = plan.query_positions(problem)
        compared = similarity.Compared(problem.query.to(dtype), candidates.to(dtype), str(problem.similarity))
        return _among_listed(problem, compared, plan.candidate_table(problem, self_index).keys, self_index, operators)


def _select(
    problem: Search,
    compared: similarity.Compared,
    table: plan.CandidateTable,
    self_index: Tensor | None,
    operators: Operators,
) -> Tensor:
    if table.keys is not None and table.keys.dim() == 2:
        return plan.select_neighbors(
            problem, _window_scores(problem, compared, table.keys, operators), table, self_index
        )
    self_index = self_index if problem.include_self else None
    listed = _among_all(problem, compared, table.keys, self_index, operators)
    index = listed if table.keys is None else table.keys[listed]
    return index if self_index is None else select.with_self_first(self_index, index)


def _among_all(
    problem: Search,
    compared: similarity.Compared,
    keys: Tensor | None,
    self_index: Tensor | None,
    operators: Operators,
) -> Tensor:
    """Return indices ``(B, N, k)`` into the keys, or into those listed; without the self index, k - 1."""
    if keys is not None:  # the other keys are not compared
        position = compared.key_position
        compared = compared._replace(
            key=compared.key.index_select(1, keys), key_position=None if position is None else position[keys]
        )
    return _among_listed(problem, compared, keys, self_index, operators)


def _among_listed(
    problem: Search,
    compared: similarity.Compared,
    keys: Tensor | None,
    self_index: Tensor | None,
    operators: Operators,
) -> Tensor:
    """Search as ``_among_all`` does, with ``compared`` of the listed keys alone."""
    masked, skip = problem.key_padding_mask, self_index
    if keys is not None:
        masked = None if masked is None else masked[:, keys]
        skip = None if self_index is None else plan.index_among(self_index, keys, problem.keys)
    plan.check_counts(problem, keys, skip)
    count = problem.k - (self_index is not None)
    index: Tensor
    if compared.metric in similarity.EUCLIDEAN:
        query, key, _, factor, query_position, key_position = compared
        index = operators.nearest_euclidean(
            query, key, factor, query_position, key_position, masked, skip, count, problem.deterministic
        )
    else:
        query, key = similarity.embed_to_rank(compared.query, compared.key, compared.metric, problem.scale)
        index = operators.nearest(query, key, None, masked, skip, count, problem.deterministic)
    return index


def _window_scores(problem: Search, compared: similarity.Compared, keys: Tensor, operators: Operators) -> Tensor:
    """Compare every query with its own window ``(N, w)``: ``(B, N, w)``."""
    index = keys.expand(compared.query.shape[0], -1, -1)
    if compared.metric in similarity.EUCLIDEAN:
        return -similarity.squared_distances(compared, index, operators.pair_distance)
    query, key = similarity.embed_to_rank(compared.query, compared.key, compared.metric, problem.scale)
    scores: Tensor = operators.pair_product(query, key, index)
    return scores
