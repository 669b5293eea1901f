"""The custom operators in plain ones, for programs that run where convnn is not installed.

The same functions as those in ``ops``, without tiles: a program that is exported has one shape of everything but the
batch, and the runtime that loads it has kernels of its own. They need ``O(B N M)`` and ``O(B N k C)`` memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import bags, euclidean, nearest, product, sampled  # noqa: F401  # importing them registers the operators
from ..precision import wide_dtype
from ..stages import aggregate, select

NAMESPACE = "convnn"


def plain_operators() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of every operator that a forward pass runs, for ``run_decompositions``."""
    plain: dict[str, Callable[..., Any]] = {
        "nearest": search,
        "nearest_euclidean": search_euclidean,
        "linear": F.linear,
        "sampled_mix": sampled_mix,
        "slot_mix": slot_mix,
        "bag_sum": bag_sum,
        "pair_product": pair_product,
        "pair_distance": pair_distance,
    }
    registered = getattr(torch.ops, NAMESPACE)
    return {getattr(registered, name).default: function for name, function in plain.items()}


def search(
    query: Tensor, key: Tensor, bias: Tensor | None, masked: Tensor | None, own: Tensor | None, k: int, stable: bool
) -> Tensor:
    """Find the k keys with the largest ``<query, key> + bias``; arguments and result as of ``ops.nearest``."""
    # Where ties count, pair by pair: a product of matrices may round equal columns differently, by where they stand.
    scores = (query.unsqueeze(2) * key.unsqueeze(1)).sum(-1) if stable else query @ key.transpose(1, 2)
    if bias is not None:
        bias = bias.unsqueeze(1)
        scores = (scores + bias).masked_fill(bias.isneginf(), -torch.inf)
    return _best(scores, masked, own, k, stable)


def search_euclidean(
    query: Tensor,
    key: Tensor,
    factor: Tensor | None,
    query_position: Tensor | None,
    key_position: Tensor | None,
    masked: Tensor | None,
    own: Tensor | None,
    k: int,
    stable: bool,
) -> Tensor:
    """Find the k nearest keys; arguments and result as of ``ops.euclidean``, by products in float64."""
    dtype = wide_dtype(query.device)
    centre = key.nan_to_num(0, 0, 0).mean(1, keepdim=True).to(dtype)
    query, key = query.to(dtype) - centre, key.to(dtype) - centre
    if factor is not None and query_position is not None and key_position is not None:
        batch = query.shape[0]
        query = torch.cat([query * factor, query_position.to(dtype).expand(batch, -1, -1)], 2)
        key = torch.cat([key * factor, key_position.to(dtype).expand(batch, -1, -1)], 2)
    if stable:
        return _best(-(query.unsqueeze(2) - key.unsqueeze(1)).square().sum(-1), masked, own, k, stable)
    bias = key.square().sum(-1).unsqueeze(1) * -0.5
    scores = (query @ key.transpose(1, 2) + bias).masked_fill(bias.isneginf(), -torch.inf)
    return _best(scores, masked, own, k, stable)


def _best(scores: Tensor, masked: Tensor | None, own: Tensor | None, k: int, stable: bool) -> Tensor:
    """Return the k best of scores ``(B, N, M)``, without the masked keys ``(B, M)`` and each query's own ``(N,)``."""
    excluded = None if masked is None else masked.unsqueeze(1)
    if own is not None:
        taken = (torch.arange(scores.shape[2], device=scores.device) == own.unsqueeze(1)).unsqueeze(0)
        excluded = taken if excluded is None else excluded | taken
    if excluded is not None:
        scores = select.exclude(scores, excluded)
    return select.top(scores, k, deterministic=stable)


def take(table: Tensor, index: Tensor) -> Tensor:
    """Gather rows: ``(B, M, C)`` by ``(B, N, k)`` to ``(B, N, k, C)``."""
    batch, rows, channels = table.shape
    # Whole rows of one table: runtimes copy them as they are, where a gather along an axis needs an index per number.
    first = torch.arange(batch, device=index.device) * rows
    return F.embedding(index + first.view(-1, 1, 1), table.reshape(batch * rows, channels))


def bag_sum(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """Sum k rows per query: ``(B, M, C)``, ``(B, N, k)``, weights ``(B, N, k)`` or ones, to ``(B, N, C)``."""
    taken = take(table, index)
    return (taken if weight is None else taken * weight.to(table.dtype).unsqueeze(-1)).sum(2)


def sampled_mix(
    value: Tensor,
    slots: Tensor,
    bias: Tensor | None,
    keys: Tensor,
    places: Tensor,
    lattice: Sequence[int],
    by_channels: bool,
) -> Tensor:
    """Mix the query's own token and the candidates at ``places``, as ``ops.sampled`` does."""
    k, out, channels = slots.shape
    mixed = F.linear(sampled.queries_of(value, lattice).flatten(1, -2), slots[0], bias)
    if k > 1:
        projected = F.linear(sampled.pick(value, keys).flatten(0, 1), slots[1:].reshape((k - 1) * out, channels))
        mixed = mixed + bag_sum(projected.view(value.shape[0], -1, out), _slot_rows(places), None)
    return mixed.transpose(1, 2).contiguous().transpose(1, 2) if by_channels else mixed


def slot_mix(value: Tensor, weight: Tensor, index: Tensor, rho: Tensor | None, groups: int) -> Tensor:
    """Mix k neighbours by one matrix per slot, ``(B, M, C_in)`` to ``(B, N, C_out)``, as ``ops.slots`` does."""
    taken = take(value, index)
    if rho is not None:
        taken = taken * rho.unsqueeze(-1)
    out, width, k = weight.shape
    if groups == 1:
        return taken.flatten(2) @ weight.permute(2, 1, 0).reshape(k * width, out)
    if width == 1 and out == groups:
        return (taken * weight.squeeze(1).t()).sum(2)
    return aggregate.mix_slots(taken, weight, groups)


def _slot_rows(places: Tensor) -> Tensor:
    """Number the projected rows of ``(B, N, k)``: value j in slot m is row ``j * k + m``."""
    k = places.shape[2]
    return places * k + torch.arange(k, device=places.device)


def pair_product(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Multiply each query with its k rows: ``(B, N, C)``, ``(B, M, C)``, ``(B, N, k)`` to ``(B, N, k)``."""
    return (query.unsqueeze(2) * take(table, index)).sum(-1)


def pair_distance(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Return the squared distances of each query from its k rows, shaped as ``pair_product``."""
    return (query.unsqueeze(2) - take(table, index)).square().sum(-1)
