"""The native sums of gathered rows, their transpose, and the products and distances of gathered pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import native
from ...native.signatures import BagsProblem, address
from ..bags import Bags, bag_scatter, bag_sum, derivatives, pair_distance, pair_product
from .definition import as_index, as_rows, as_tokens, as_weights, define_native


def _run(
    name: str, result: Tensor, table: Tensor | None, source: Tensor | None, index: Tensor, *, rows: int = 0, **rest: Any
) -> Tensor:
    """Let a kernel write into ``result``, which is returned; without indices or channels it is filled with zeros."""
    tokens = source if table is None else table
    index = as_index(index)
    if tokens is None or not index.numel() or not tokens.numel():
        return result.zero_()
    problem = BagsProblem(
        batch=index.shape[0], queries=index.shape[1], channels=tokens.shape[2], k=index.shape[2],
        rows=rows if table is None else table.shape[1],
        table=table, table_stride=None if table is None else table.stride(),
        source=source, source_stride=None if source is None else source.stride(),
        index=index, result=result, **rest,
    )  # fmt: skip
    getattr(native.library(), f"convnn_{name}")(address(problem))
    return result


def _empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def sum_bags(table: Tensor, index: Tensor, weight: Tensor | None, vectors: Tensor | None = None) -> Tensor:
    """Compute ``bag_sum`` in float32, each slot's rows multiplied by its vector ``(k, C)``."""
    out = _empty(table, table.shape[0], index.shape[1], table.shape[2])
    return _run("bag_sum", out, as_rows(table), None, index, weight=as_weights(weight), vectors=vectors)


def scatter_bags(
    source: Tensor,
    index: Tensor,
    weight: Tensor | None,
    rows: int,
    vectors: Tensor | None = None,
    *,
    by_slot: bool = False,
) -> Tensor:
    """Compute ``bag_scatter`` in float32; ``by_slot``: to row ``index * k + m`` in slot m."""
    out = _empty(source, source.shape[0], rows, source.shape[2])
    more = {"weight": as_weights(weight), "vectors": vectors, "by_slot": int(by_slot)}
    return _run("bag_scatter", out, None, as_tokens(source), index, rows=rows, **more)


def pair_products(query: Tensor, table: Tensor, index: Tensor, vectors: Tensor | None = None) -> Tensor:
    """Compute ``pair_product`` in float32, the products of each slot multiplied by its vector."""
    return _run("pair_product", _empty(query, *index.shape), as_rows(table), as_rows(query), index, vectors=vectors)


def vector_gradients(grad: Tensor, table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    """Compute the gradients of the vectors of ``sum_bags``: ``(k, C)``."""
    out = _empty(grad, index.shape[2], grad.shape[2])
    return _run("vector_gradient", out, as_rows(table), as_rows(grad), index, weight=as_weights(weight))


def _bag_sum(table: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
    return sum_bags(table, index, weight).to(table.dtype)


def _bag_scatter(source: Tensor, index: Tensor, weight: Tensor | None, rows: int) -> Tensor:
    return scatter_bags(source, index, weight, rows).to(source.dtype)


def _pair_product(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    return pair_products(query, table, index).to(query.dtype)


def _pair_distance(query: Tensor, table: Tensor, index: Tensor) -> Tensor:
    out = _run("pair_distance", _empty(query, *index.shape), as_rows(table), as_rows(query), index)
    return out.to(query.dtype)


_backward = derivatives(lambda: NATIVE)
NATIVE: Bags = Bags(
    define_native(bag_sum, _bag_sum, _backward.sum),
    define_native(bag_scatter, _bag_scatter, _backward.scatter),
    define_native(pair_product, _pair_product, _backward.product),
    define_native(pair_distance, _pair_distance, _backward.distance),
)
native_bag_sum, native_bag_scatter, native_pair_product, native_pair_distance = NATIVE
