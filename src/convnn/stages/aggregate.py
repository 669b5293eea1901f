"""Aggregation: how similarities weight neighbours, and how slot weights mix them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..types import Weighting


def softmax(x: Tensor) -> Tensor:
    """Return the softmax over the last axis."""
    return F.softmax(x, dim=-1)


def neighbor_weights(
    similarity: Tensor, weighting: Weighting, temperature: float, softmax: Callable[[Tensor], Tensor] = softmax
) -> Tensor | None:
    """Return rho of the k similarities ``(..., k)``; None for ones. ``softmax`` may be a faster one."""
    if weighting == "ones":
        return None
    if weighting == "identity":
        return similarity
    return softmax(similarity / temperature)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Gather ``(B, N, k, C)`` from tokens ``(B, M, C)`` by ``index`` ``(B, N, k)``."""
    batch, queries, k = index.shape
    flat = index.reshape(batch, queries * k, 1).expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, flat).reshape(batch, queries, k, tokens.shape[-1])


def mix_slots(neighbors: Tensor, weight: Tensor | None, groups: int) -> Tensor:
    """Apply each slot's matrix and add: ``(B, N, k, C_in)`` and ``(C_out, C_in/groups, k)`` to ``(B, N, C_out)``.

    Exactly an ``nn.Conv1d`` of kernel k and stride k over the concatenated neighbours.
    """
    if weight is None:
        return neighbors.sum(2)
    grouped = neighbors.unflatten(-1, (groups, -1))
    slots = weight.unflatten(0, (groups, -1))
    return torch.einsum("bnkgc,gock->bngo", grouped, slots).flatten(2)
