"""The positions that a layer gathers for one query, of ConvNN and hybrid layers, convolutions and attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.modules import evaluating
from ..errors import invalid
from ..maps import describe_map
from ..nn import ConvNN2d, ConvNNAttention
from ..nn.from_attention import is_timm_attention
from ..types import Neighbors

RowCol = tuple[int, int]


@dataclass(frozen=True)
class NeighborMap:
    """The positions that one layer gathers for one query, in slot order.

    Attributes:
        grid: rows and columns of the map that the layer gathers from, without padding.
        query: row and column of the query in that map.
        positions: row and column of each neighbour; outside the grid for one in the padding.
        similarity: the similarity of each neighbour.
        weight: the softmax weight of each neighbour; empty if all weights are 1.
    """

    grid: RowCol
    query: RowCol
    positions: tuple[RowCol, ...]
    similarity: tuple[float, ...]
    weight: tuple[float, ...] = ()

    def inside(self) -> list[bool]:
        """Return True for each neighbour in the map itself, False for one in the padding around it."""
        return [0 <= row < self.grid[0] and 0 <= column < self.grid[1] for row, column in self.positions]


def neighbor_map(
    layer: nn.Module, x: Tensor, query: RowCol, *, grid: RowCol | None = None, prefix: int = 0, head: int = 0
) -> NeighborMap:
    """Return the neighbours of the output position ``query`` in ``layer``, for the first sample of ``x``.

    Args:
        layer: a ConvNN2d or hybrid layer or an ``nn.Conv2d``, with x ``(B, C, H, W)``; or a ConvNN, timm or PyTorch
            attention layer, with x ``(B, N, C)``.
        x: the layer's input.
        query: row and column of the query in the layer's output.
        grid: of attention's tokens: rows and columns (default: a square).
        prefix: of attention's tokens: how many come before the map (a class token), left out of the map.
        head: of attention: which head.

    Raises:
        ConvNNError: a layer that has no neighbours, or a query outside the map.

    Example:
        >>> conv = nn.Conv2d(1, 1, 3, padding=1)
        >>> neighbor_map(conv, torch.zeros(1, 1, 4, 4), (1, 2)).positions[:3]
        ((0, 1), (0, 2), (0, 3))
    """
    finder = _finder(layer)
    if finder is None:
        fix = "choose a convolution, an attention, a ConvNN or a hybrid layer"
        raise invalid("layer", "a layer that gathers neighbours", type(layer).__name__, fix)
    with torch.no_grad(), evaluating(finder):
        neighbors: Neighbors = finder.neighbors(x[:1])
    if x.dim() == 4:
        return _of_map(getattr(finder, "convnn", finder), neighbors, x, query)
    side = math.isqrt(x.shape[1] - prefix)
    grid = grid or (side, side)
    if grid[0] * grid[1] + prefix != x.shape[1]:
        raise invalid("grid", f"rows x columns = {x.shape[1] - prefix} tokens", grid, "give grid=(rows, columns)")
    row = prefix + _flat(query, grid)
    similarity, index = neighbors.similarity[0, head, row], neighbors.index[0, head, row]
    kept = index >= prefix
    positions = tuple(divmod(int(i) - prefix, grid[1]) for i in index[kept])
    weight = tuple(similarity.softmax(-1)[kept].tolist())
    return NeighborMap(grid, query, positions, tuple(similarity[kept].tolist()), weight)


def _of_map(layer: Any, neighbors: Neighbors, x: Tensor, query: RowCol) -> NeighborMap:
    """Convert indices of the padded map, in raster order, to rows and columns of the map without padding."""
    grid, outputs = _sizes(layer, x)
    top, left = padding = layer.candidate_padding
    columns = grid[1] + 2 * left
    row = _flat(query, outputs)
    similarity, index = neighbors.similarity[0, row], neighbors.index[0, row]
    positions = tuple((int(i) // columns - top, int(i) % columns - left) for i in index)
    position = tuple(q * s + m - p for q, s, m, p in zip(query, layer.stride, layer.query_margin, padding, strict=True))
    weight = tuple(similarity.softmax(-1).tolist()) if layer.weighting == "softmax" else ()
    return NeighborMap(grid, (position[0], position[1]), positions, tuple(similarity.tolist()), weight)


def _sizes(layer: Any, x: Tensor) -> tuple[RowCol, RowCol]:
    """Return the un-padded map's rows and columns, and the output's."""
    grid = (x.shape[2] // layer.unshuffle, x.shape[3] // layer.unshuffle)
    rows, columns = describe_map(grid, layer.candidate_padding, layer.query_margin, stride=layer.stride).queries.shape
    return grid, (rows, columns)


def _flat(query: RowCol, grid: RowCol) -> int:
    if not (0 <= query[0] < grid[0] and 0 <= query[1] < grid[1]):
        expected = f"a row in 0..{grid[0] - 1} and a column in 0..{grid[1] - 1}"
        raise invalid("query", expected, query, "choose a position of the layer's output")
    return query[0] * grid[1] + query[1]


def _finder(layer: nn.Module) -> Any:
    """Return the layer, or the ConvNN layer that equals it, or None."""
    if callable(getattr(layer, "neighbors", None)):
        return layer
    if isinstance(layer, nn.Conv2d):
        return ConvNN2d.from_conv(layer)
    if isinstance(layer, nn.MultiheadAttention) or is_timm_attention(layer):
        return ConvNNAttention.from_attention(layer)
    return None


def capture_inputs(model: nn.Module, images: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
    """Run the model once; return each layer that gathers neighbours with its input, by name, in the order of the run.

    Convolutions inside a hybrid layer belong to it and are not listed. A layer that runs more than once keeps its first
    input.
    """
    captured: dict[str, tuple[nn.Module, Tensor]] = {}
    owner = ""
    hooks = []
    for name, module in model.named_modules():
        if owner and name.startswith(f"{owner}."):
            continue
        if callable(getattr(module, "neighbors", None)) or isinstance(module, nn.Conv2d) or _finder(module) is not None:
            owner = name
            hooks.append(module.register_forward_pre_hook(_keeper(name, captured), with_kwargs=True))
    try:
        with torch.no_grad(), evaluating(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return captured


def _keeper(
    name: str, captured: dict[str, tuple[nn.Module, Tensor]]
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            x = x.transpose(0, 1)
        captured.setdefault(name, (module, x.detach()))

    return keep


def neighbor_maps(model: nn.Module, image: Tensor, query: RowCol) -> dict[str, NeighborMap]:
    """Return the neighbours of one pixel of an image ``(C, H, W)`` in every layer of a model, by the layer's name.

    The query is the position of each layer's output that contains the pixel. Token grids and class tokens are read from
    timm's attributes (``patch_embed.grid_size``, ``num_prefix_tokens``). Left out are kernels of a single position, and
    even ones (patch embeddings).

    >>> maps = neighbor_maps(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1)), torch.zeros(1, 8, 8), (2, 5))
    >>> maps["0"].query
    (2, 5)
    """
    height, width = image.shape[-2:]
    patches: RowCol | None = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    maps: dict[str, NeighborMap] = {}
    for name, (layer, x) in capture_inputs(model, image.unsqueeze(0)).items():
        if isinstance(layer, nn.Conv2d) and (max(layer.kernel_size) == 1 or any(k % 2 == 0 for k in layer.kernel_size)):
            continue
        if x.dim() == 4:
            maps[name] = neighbor_map(layer, x, _nearest_output(layer, x, (query[0] / height, query[1] / width)))
        else:
            side = math.isqrt(x.shape[1] - prefix)
            grid = patches or (side, side)
            position = (query[0] * grid[0] // height, query[1] * grid[1] // width)
            maps[name] = neighbor_map(layer, x, position, grid=grid, prefix=prefix)
    return maps


def _nearest_output(layer: nn.Module, x: Tensor, share: tuple[float, float]) -> RowCol:
    """Return the output position nearest to a point, given as a share of the map's height and width."""
    finder = _finder(layer)
    inner: Any = getattr(finder, "convnn", finder)
    grid, outputs = _sizes(inner, x)
    position = []
    for axis in (0, 1):
        token = int(share[axis] * grid[axis]) + inner.candidate_padding[axis] - inner.query_margin[axis]
        position.append(min(max(token // inner.stride[axis], 0), outputs[axis] - 1))
    return position[0], position[1]
