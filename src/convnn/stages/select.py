"""Selection: the k best candidates, exclusion, the tie rule and the self rule."""

from __future__ import annotations

import torch
from torch import Tensor


def exclude(scores: Tensor, excluded: Tensor) -> Tensor:
    """Put excluded candidates below every other: ``scores`` ``(..., w)`` where ``excluded`` broadcasts to it.

    The lowest value is kept for the excluded alone: a real similarity of -inf is raised to the least finite one first.
    """
    if scores.is_floating_point():
        return scores.clamp(min=torch.finfo(scores.dtype).min).masked_fill(excluded, -torch.inf)
    return scores.masked_fill(excluded, torch.iinfo(scores.dtype).min)


def top(scores: Tensor, k: int, *, deterministic: bool) -> Tensor:
    """Return the indices ``(..., k)`` of the k largest scores ``(..., w)``, descending; nan counts as the largest.

    ``deterministic`` takes equal scores lowest index first; otherwise any of them may come first.

    >>> top(torch.tensor([1.0, 3.0, 3.0]), 2, deterministic=True)
    tensor([1, 2])
    """
    if deterministic:
        return scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return scores.topk(k, dim=-1).indices


def with_self_first(self_index: Tensor, others: Tensor) -> Tensor:
    """Put the query's own token ``(N,)`` into slot 0 before the others ``(..., N, k - 1)``."""
    first = self_index.unsqueeze(-1).expand(*others.shape[:-1], 1)
    return torch.cat([first, others], dim=-1)
