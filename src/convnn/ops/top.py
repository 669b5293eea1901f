"""The k largest scores of every query, by the fastest road for their number and width."""

from __future__ import annotations

import torch
from torch import Tensor

from . import network

# Columns whose maxima stand for them, where the search goes from maxima to columns.
_GROUP = 4
# A level of at most this many maxima for each wanted key is searched as it is.
_FEW = 8
# From this many queries on, a network's steps cost less than what they save.
_MANY_QUERIES = 256


def top(scores: Tensor, k: int) -> Tensor:
    """Return the places ``(b, n, k)`` of the k largest of ``(b, n, m)``, descending; nan counts as the largest.

    On a CPU the time of ``topk`` grows with the width. So maxima of groups are taken, and maxima of those, until few
    are left: the k best columns lie in the k groups with the largest maxima. A group holds the columns ``g, g + n, g +
    2n, ...``, so that the maxima are running maxima of whole rows.
    """
    levels = [scores.flatten(0, 1)]
    by_network = _suits_network(levels[0], k)
    few = _FEW * (network.WIDTH if by_network else k)
    while scores.device.type == "cpu" and levels[-1].shape[1] > few:
        groups = levels[-1].shape[1] // _GROUP
        levels.append(levels[-1][:, : groups * _GROUP].unflatten(1, (_GROUP, groups)).amax(1))
    by_network = by_network and not _has_nan(levels)
    place: Tensor = (_by_network if by_network else _by_topk)(levels, k).unflatten(0, scores.shape[:2])
    return place


def _suits_network(rows: Tensor, k: int) -> bool:
    on_cpu = rows.device.type == "cpu" and rows.dtype == torch.float32
    return on_cpu and k <= network.WIDTH <= rows.shape[1] and rows.shape[0] >= _MANY_QUERIES


def _has_nan(levels: list[Tensor]) -> bool:
    """Whether there is a nan, for which a network has no place in its order: the maximum of its group is nan too."""
    in_no_group = [level[:, level.shape[1] // _GROUP * _GROUP :] for level in levels[:-1]]
    return any(bool(part.amax().isnan()) for part in (levels[-1], *in_no_group) if part.numel())


def _by_network(levels: list[Tensor], k: int) -> Tensor:
    last = levels.pop()
    groups = last.shape[1]
    found = network.best(network.pack(last.t(), _column(groups)), in_order=not levels)
    while levels:
        level = levels.pop()
        # Of all eight, also where k is less: until the last level they are in no order.
        members = _members(network.names(found), groups, level.shape[1])
        # Gathered where a query's scores lie together: they are in the cache.
        values = level.gather(1, members.t())
        found = network.best(network.pack(values.t(), members), in_order=not levels)
        groups = level.shape[1]
    return network.names(found[:k]).t()


def _by_topk(levels: list[Tensor], k: int) -> Tensor:
    groups = levels[-1].shape[1]
    place = levels.pop().topk(k, dim=1, sorted=not levels).indices
    while levels:
        place = _members(place.t(), groups, levels[-1].shape[1]).t()
        groups = levels[-1].shape[1]
        place = place.gather(1, levels.pop().gather(1, place).topk(k, dim=1, sorted=not levels).indices)
    return place


def _column(count: int) -> Tensor:
    return torch.arange(count).unsqueeze(1)


def _members(chosen: Tensor, groups: int, width: int) -> Tensor:
    """Return the columns of the chosen groups ``(k, n)``, and those few at the end that are in no group."""
    first = torch.arange(0, groups * _GROUP, groups, device=chosen.device)
    members = (chosen.unsqueeze(0) + first.view(-1, 1, 1)).flatten(0, 1)
    rest = torch.arange(groups * _GROUP, width, device=chosen.device)
    return torch.cat([members, rest.unsqueeze(1).expand(-1, members.shape[1])]) if rest.numel() else members
