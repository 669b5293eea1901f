"""The equations of the operator, query by query: the oracle. Slow on purpose; no other implementation may use it."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ..maps import QueryGrid
from ..types import Blend, Gather, Grid, Neighbors, Problem, Search, Window
from .base import Implementation


def search(problem: Search) -> Neighbors:
    """Find the k neighbours of every query by comparing it with every candidate, one at a time."""
    dtype = torch.float32 if problem.query.dtype in (torch.float16, torch.bfloat16) else problem.query.dtype
    rows = [
        _row(problem, query, key, n, b)
        for b, (queries, key) in enumerate(zip(problem.query.to(dtype), problem.key.to(dtype), strict=True))
        for n, query in enumerate(queries)
    ]
    shape = (*problem.query.shape[:2], problem.k)
    if not rows:
        empty = torch.zeros(shape, dtype=torch.int64, device=problem.query.device)
        return Neighbors(empty.to(dtype), empty)
    return Neighbors(torch.stack([s for s, _ in rows]).view(shape), torch.stack([i for _, i in rows]).view(shape))


def _row(problem: Search, query: Tensor, key: Tensor, n: int, b: int) -> tuple[Tensor, Tensor]:
    self_index = _self_index(problem, n)
    mask = problem.key_padding_mask
    masked = [] if mask is None else [j for j in range(len(key)) if mask[b, j]]
    allowed = [j for j in _allowed(problem, self_index) if j not in masked]
    picked: list[int] = []
    if problem.include_self and self_index is not None:
        picked, allowed = [self_index], [j for j in allowed if j != self_index]
    count = problem.k - len(picked)
    if not problem.every and count > len(allowed):
        has = f"query {n} of sample {b} has only {len(allowed)} candidates{' beside itself' if picked else ''}"
        raise ValueError(f"k: expected at most {len(picked) + len(allowed)} ({has}), got {problem.k}; lower k")
    if problem.similarity == "spatial":
        if self_index is None:
            raise ValueError("spatial similarity needs the queries' positions")
        position = _position(self_index, problem.grid)
        apart = {
            j: [abs(a - c) for a, c in zip(position, _position(j, problem.grid), strict=True)]
            for j in [self_index, *allowed]
        }
        nearest = sorted(allowed, key=lambda j: (max(apart[j]), sum(a * a for a in apart[j]), j))[:count]
        picked += sorted(nearest)
        similarity = torch.tensor([-float(max(apart[j])) for j in picked], dtype=query.dtype, device=query.device)
    else:
        values = torch.stack([_similarity(problem, query, key, self_index, j) for j in [*picked, *allowed]])
        order = values[len(picked) :].detach().sort(descending=True, stable=True).indices[:count]
        similarity = torch.cat([values[: len(picked)], values[len(picked) :][order]])
        picked += [allowed[int(position)] for position in order]
        if problem.every:
            similarity = torch.cat([similarity, similarity.new_full((len(masked),), -torch.inf)])
            picked += masked
    return similarity, torch.tensor(picked, device=query.device)


def _self_index(problem: Search, n: int) -> int | None:
    if isinstance(problem.query_index, QueryGrid):
        return int(problem.query_index.index(problem.grid, torch.device("cpu"))[n])
    return None if problem.query_index is None else int(problem.query_index[n])


def _position(j: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    position = []
    for size in reversed(grid):
        j, along = divmod(j, size)
        position.append(along)
    return tuple(reversed(position))


def _flat(position: tuple[int, ...], grid: tuple[int, ...]) -> int:
    flat = 0
    for along, size in zip(position, grid, strict=True):
        flat = flat * size + along
    return flat


def _allowed(problem: Search, self_index: int | None) -> list[int]:
    """The candidates of one query, in raster order."""
    grid, candidates = problem.grid, problem.candidates
    if isinstance(candidates, Tensor):
        return [int(j) for j in candidates.sort().values]
    if isinstance(candidates, Grid):
        m, g = candidates.margin, candidates.g
        axes = [[m + i * (size - 1 - 2 * m) // max(g - 1, 1) for i in range(g)] for size in grid]
        return [_flat(position, grid) for position in itertools.product(*axes)]
    if isinstance(candidates, Window) and self_index is not None:
        size, dilation = candidates.per_axis(len(grid))
        axes = [
            _window(at, s, d, length, candidates.border)
            for at, s, d, length in zip(_position(self_index, grid), size, dilation, grid, strict=True)
        ]
        return [_flat(position, grid) for position in itertools.product(*axes)]
    return list(range(math.prod(grid)))


def _window(at: int, size: int, dilation: int, length: int, border: str) -> list[int]:
    """The positions on one axis inside a window around ``at``."""
    if border == "clip":
        around = [at + dilation * i for i in range(-(size // 2), size // 2 + 1)]
        return [position for position in around if 0 <= position < length]
    reachable = list(range(at % dilation, length, dilation))
    start = min(max(at // dilation - size // 2, 0), len(reachable) - size)
    return reachable[start : start + size]


def _similarity(problem: Search, query: Tensor, key: Tensor, self_index: int | None, j: int) -> Tensor:
    name, q, k = problem.similarity, query, key[j]
    apart = q.new_zeros(())
    if isinstance(name, Blend):
        if self_index is None:
            raise ValueError("a blend needs the queries' positions")
        spread = key.std() + 1e-6 if key.numel() > 1 else key.new_tensor(1e-6)
        scaled = [(1 - name.lam) * _coordinates(at, problem.grid) for at in (self_index, j)]
        if name.feature == "cosine":
            q, k = (torch.cat([name.lam * x / spread, p.to(x)]) for x, p in zip((q, k), scaled, strict=True))
        else:  # by differences: joined first, the coordinates would be rounded before they are compared
            apart = (scaled[0] - scaled[1]).square().sum().to(q)
            q, k = (q - k) * (name.lam / spread), torch.zeros_like(k)
        name = name.feature
    if name == "dot":
        return (q * k).sum() * problem.scale
    if name == "cosine":
        zero = bool((q == 0).all()) or bool((k == 0).all())
        return (q * 0).sum() + (k * 0).sum() if zero else (_unit(q) * _unit(k)).sum()
    squared = (q - k).square().sum() + apart
    if name == "sqeuclidean":
        return -squared
    return -squared.sqrt() if squared > 0 else squared * 0


def _unit(x: Tensor) -> Tensor:
    """Scale to length 1, by way of the largest entry, so that no square under- or overflows."""
    scaled = x / x.detach().abs().max()
    unit: Tensor = scaled / scaled.norm()
    return unit


def _coordinates(j: int, grid: tuple[int, ...]) -> Tensor:
    """x, y, ... in float64: from -1 to 1 along each axis, -1 where an axis has one token."""
    position = [2 * a / (size - 1) - 1 if size > 1 else -1.0 for a, size in zip(_position(j, grid), grid, strict=True)]
    return torch.tensor(position[::-1], dtype=torch.float64)


def gather(problem: Gather, neighbors: Neighbors) -> Tensor:
    """Add up the slots' matrices times the weighted neighbours, one query at a time."""
    value, weight = problem.value, problem.weight
    outputs = []
    for b, (similarities, indices) in enumerate(zip(*neighbors, strict=True)):
        for s, index in zip(similarities, indices, strict=True):
            rho = _rho(s, problem).to(value.dtype)
            total: Tensor | float = 0.0
            for m, j in enumerate(index.tolist()):
                token = rho[m] * value[b, j]
                total = total + (token if weight is None else _matrix(weight, m, problem.groups) @ token)
            outputs.append(total if problem.bias is None else total + problem.bias)
    channels = value.shape[-1] if weight is None else weight.shape[0]
    shape = (*neighbors.index.shape[:2], channels)
    return torch.stack([torch.as_tensor(y) for y in outputs]).view(shape) if outputs else value.new_zeros(shape)


def _rho(similarity: Tensor, problem: Gather) -> Tensor:
    if problem.weighting == "ones":
        rho = torch.ones_like(similarity)
    elif problem.weighting == "identity":
        rho = similarity
    else:
        rho = torch.softmax(similarity / problem.temperature, dim=0)
    return torch.dropout(rho, problem.dropout_p, train=True) if problem.dropout_p else rho


def _matrix(weight: Tensor, m: int, groups: int) -> Tensor:
    """The full ``(C_out, C_in)`` matrix of slot m: block-diagonal over the groups."""
    matrix: Tensor = torch.block_diag(*weight[:, :, m].chunk(groups))
    return matrix


class Reference(Implementation):
    """The equations, query by query."""

    name = "reference"
    on_request = True

    def why_not(self, problem: Problem) -> str | None:
        """Return None: it runs everything."""
        return None

    def search(self, problem: Search) -> Neighbors:
        """Compare every query with every candidate, one at a time."""
        return search(problem)

    def gather(self, problem: Gather, neighbors: Neighbors) -> Tensor:
        """Add up the slots' matrices times the weighted neighbours, one query at a time."""
        return gather(problem, neighbors)
