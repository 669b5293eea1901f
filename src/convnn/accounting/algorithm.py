"""The cost of a ConvNN layer as published: all tokens are compared, neighbours gathered, every copy multiplied.

    similarity    2 B N M C        N all tokens, those of the padding among them; M the candidates; C the embedded width
    aggregation   2 B P k C_in C_out        P the output positions: the copies of padded tokens are dropped before

k-NN attention without slot weights is counted as its authors run it: the dense scores, masked, times all values.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import invalid
from ..maps import describe_map
from ..nn.convnn import ConvNN1d, ConvNN2d, ConvNN3d
from ..nn.heads import HeadsAttention
from ..nn.layer import NeighborLayer
from ..nn.multihead import ConvNNMultiheadAttention
from ..types import Blend, Grid, Random, Similarity, Window


@dataclass
class LayerCost:
    """The FLOPs of a layer's products by operator, and the elements of its elementwise operators."""

    products: Counter[str] = field(default_factory=Counter)
    elements: Counter[str] = field(default_factory=Counter)

    def counted(self, convention: str) -> Counter[str]:
        """Return the counts of a convention: ``"gather"`` the products; ``"published"`` no conv1d, but the elements."""
        if convention == "gather":
            return self.products
        return Counter({name: flops for name, flops in self.products.items() if name != "conv1d"}) + self.elements


def layer_cost(layer: NeighborLayer, arguments: dict[str, Any]) -> LayerCost:
    """Return the cost of a call of a ConvNN layer, ``arguments`` by name; given neighbours cost nothing."""
    if isinstance(layer, ConvNN1d | ConvNN2d | ConvNN3d):
        return _of_map(layer, arguments)
    if isinstance(layer, HeadsAttention):
        return _of_heads(layer, arguments)
    fix = "count it by the executed convention"
    raise invalid("layer", "a ConvNN or a ConvNN attention layer", type(layer).__name__, fix)


def candidate_count(layer: NeighborLayer, grid: tuple[int, ...]) -> int:
    """Return how many tokens of the grid each query is compared with."""
    tokens, candidates = math.prod(grid), layer.candidates
    if isinstance(candidates, Tensor):
        return candidates.numel()
    if isinstance(candidates, Random):
        return min(candidates.r, tokens)
    if isinstance(candidates, Grid):
        return int(candidates.g ** len(grid)) if candidates.g <= min(grid) else tokens
    if isinstance(candidates, Window):
        return min(math.prod(candidates.per_axis(len(grid))[0]), tokens)
    return tokens


def _width(similarity: Similarity, channels: int, axes: int) -> int:
    """Return the width of the vectors that are compared."""
    if isinstance(similarity, Blend):
        return channels + axes
    return axes if similarity == "spatial" else channels


def _is_sampled(layer: NeighborLayer) -> bool:
    """Return True if all queries share one list of candidates, so that only those are projected to keys."""
    return isinstance(layer.candidates, Random | Grid | Tensor)


def _of_map(layer: ConvNN1d | ConvNN2d | ConvNN3d, arguments: dict[str, Any]) -> LayerCost:
    x, cost = arguments["input"], LayerCost()
    batch = x.shape[0] if x.dim() == layer.dims + 2 else 1
    grid = tuple(size // layer.unshuffle for size in x.shape[-layer.dims :])
    padded = tuple(size + 2 * amount for size, amount in zip(grid, layer.candidate_padding, strict=True))
    query_grid = describe_map(grid, layer.candidate_padding, layer.query_margin, stride=layer.stride).queries
    tokens, outputs = batch * math.prod(padded), batch * math.prod(query_grid.shape)
    candidates = candidate_count(layer, padded)
    channels = layer.in_channels * layer.unshuffle**layer.dims
    searches = arguments.get("neighbors") is None
    if searches:
        _add_search(cost, layer, batch=batch, tokens=tokens, candidates=candidates, channels=channels)
        if isinstance(layer.candidates, Grid) and candidates < math.prod(padded):  # their positions: y * width + x
            cost.elements.update(dict.fromkeys(("mul", "add"), (layer.dims - 1) * candidates))
    if layer.value_projection is not None:
        keys = batch * candidates if _is_sampled(layer) else tokens
        cost.products["mm"] += 2 * channels**2 * (tokens + (tokens + keys if searches else 0))
    if layer.weight is not None:
        cost.products["conv1d"] += 2 * outputs * layer.weight.numel()
        if layer.weighting != "ones":
            copied = channels + layer.dims * layer.value_coordinates
            cost.elements["mul"] += tokens * layer.weight.shape[2] * copied
    if layer.pointwise is not None:
        cost.products["conv1d"] += 2 * outputs * layer.pointwise.weight.numel()
    return cost


def _add_search(
    cost: LayerCost, layer: NeighborLayer, *, batch: int, tokens: int, candidates: int, channels: int
) -> None:
    """Add the similarities of all tokens, of the whole batch, to their candidates."""
    axes = getattr(layer, "dims", 1)
    cost.products["bmm"] += 2 * tokens * candidates * _width(layer.similarity, channels, axes)
    metric = layer.similarity.feature if isinstance(layer.similarity, Blend) else layer.similarity
    if isinstance(layer.similarity, Blend):
        cost.elements["mul"] += tokens * (channels + axes)
        cost.elements["add"] += batch  # each sample's standard deviation, plus 1e-6
    if metric in ("euclidean", "sqeuclidean"):  # |q|^2 + |k|^2 - 2 <q, k>
        cost.elements["mul"] += tokens * candidates
        cost.elements["add"] += tokens


def _of_heads(layer: HeadsAttention, arguments: dict[str, Any]) -> LayerCost:
    cost = LayerCost()
    if isinstance(layer, ConvNNMultiheadAttention):
        batch, queries, keys = _sequences(layer, arguments["query"], arguments["key"])
        channels, bias = layer.embed_dim, layer.in_proj_bias is not None
    else:
        batch, queries, channels = arguments["x"].shape
        keys, bias = queries, layer.qkv.bias is not None  # type: ignore[union-attr]
    width = layer.num_heads * layer.head_dim
    candidates = candidate_count(layer, (keys,))
    projected = candidates if _is_sampled(layer) else keys
    cost.products["addmm" if bias else "mm"] += 2 * batch * channels * width * (queries + projected + keys)
    heads = batch * layer.num_heads
    if layer.weight is None:  # the scores of all candidates, masked but for the k best, times their values
        cost.products["bmm"] += 2 * 2 * heads * queries * candidates * layer.head_dim
        if layer.k is not None:
            cost.elements["mul"] += heads * queries * candidates
        return cost
    if arguments.get("neighbors") is None:
        tokens = heads * queries
        _add_search(cost, layer, batch=heads, tokens=tokens, candidates=candidates, channels=layer.head_dim)
    cost.products["conv1d"] += 2 * heads * queries * layer.weight.numel()
    if layer.weighting != "ones":
        cost.elements["mul"] += heads * queries * layer.weight.shape[2] * layer.head_dim
    if layer.pointwise is not None:
        cost.products["conv1d"] += 2 * heads * queries * layer.pointwise.weight.numel()
    return cost


def _sequences(layer: ConvNNMultiheadAttention, query: Tensor, key: Tensor) -> tuple[int, int, int]:
    """Return the batch and the lengths of queries and keys."""
    if query.dim() == 2:
        return 1, query.shape[0], key.shape[0]
    batch, length = (0, 1) if layer.batch_first else (1, 0)
    return query.shape[batch], query.shape[length], key.shape[length]
