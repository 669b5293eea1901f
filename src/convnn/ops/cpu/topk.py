"""Row-wise top-k, faster than torch's for short rows."""

from __future__ import annotations

import torch
from torch import Tensor

from . import network

# Columns of a group, of which the maximum is searched first.
_GROUP = 4
# Torch reads rows of at least this many columns for each of the k with a heap, and shorter ones more slowly.
_BY_HEAP = 64
# Maxima for each of the k below which searching them as well costs more than it saves.
_FEW = 4
# Up to this many columns of many queries, a network is faster.
_NARROW = 64


def network_width(like: Tensor, queries: int, keys: int, k: int) -> int | None:
    """Return how many keys the network keeps that suits a search among scores of the dtype of a tensor, or None.

    It is fastest where all scores of one key are contiguous.
    """
    suits = like.dtype == torch.float32 and queries >= network.MANY_COLUMNS
    return next((width for width in network.WIDTHS if suits and k <= width <= keys <= _NARROW), None)


def top(scores: Tensor, k: int) -> Tensor:
    """Return the indices ``(b, n, k)`` of the k largest of ``(b, n, m)``, descending; NaN counts as the largest."""
    rows = scores.flatten(0, 1)
    width = network_width(rows, rows.shape[0], rows.shape[1], k)
    # A network cannot order NaN.
    if width is not None and not bool(rows.amax().isnan()):
        index = network.topk_of_columns(rows.t(), k, width).t()
    else:
        index = _by_maxima(rows, k)
    return index.view(scores.shape[0], scores.shape[1], k)


def _by_maxima(rows: Tensor, k: int) -> Tensor:
    """Search ``(n, m)`` with ``topk``, the maxima of groups first where that saves time.

    The k best columns are in the k groups with the largest maxima. A group holds the columns ``g, g + n, g + 2n, ...``,
    so that the maxima are running maxima of whole rows.
    """
    levels = [rows]
    while _saves_time(levels[-1].shape[1], k):
        groups = levels[-1].shape[1] // _GROUP
        levels.append(levels[-1][:, : groups * _GROUP].unflatten(1, (_GROUP, groups)).amax(1))
    groups = levels[-1].shape[1]
    index = levels.pop().topk(k, dim=1, sorted=not levels).indices
    while levels:
        level = levels.pop()
        index = _members(index, groups, level.shape[1])
        index = index.gather(1, level.gather(1, index).topk(k, dim=1, sorted=not levels).indices)
        groups = level.shape[1]
    return index


def _saves_time(width: int, k: int) -> bool:
    """Return True if searching a quarter of the columns, the maxima, is so much faster than searching them all."""
    if width >= _BY_HEAP * k:
        return width >= _GROUP * _BY_HEAP * k
    return width >= _GROUP * _FEW * k


def _members(selected: Tensor, groups: int, width: int) -> Tensor:
    """Return the columns of the chosen groups ``(n, k)``, and those few at the end that are in no group."""
    first = torch.arange(0, groups * _GROUP, groups, device=selected.device)
    members = (selected.unsqueeze(1) + first.unsqueeze(1)).flatten(1)
    rest = torch.arange(groups * _GROUP, width, device=selected.device)
    return torch.cat([members, rest.expand(members.shape[0], -1)], 1) if rest.numel() else members
