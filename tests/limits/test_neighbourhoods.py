"""Between convolution and attention: k-NN attention, neighbourhood attention and dynamic graph convolution."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import convnn
from convnn.testing import assert_close, function_with_gradients, layer_with_gradients, separated_tokens, with_gradients

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
ATTENTION: dict[str, Any] = {"similarity": "dot", "weighting": "softmax"}


# ------------------------------------------------------------------------------------------------- k-NN attention (KVT)
def masked_attention(q: Tensor, k: Tensor, v: Tensor, *, count: int) -> Tensor:
    """k-NN attention as published: all logits, those below the k largest at -inf, softmax, a dense product."""
    logits = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    kept = torch.zeros_like(logits, dtype=torch.bool).scatter(2, logits.topk(count).indices, True)
    return logits.masked_fill(~kept, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("queries", "keys"), [(10, 10), (6, 10), (10, 4)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_knn_attention(count, queries, keys, dtype):
    q = separated_tokens(2, queries, 8, dtype=dtype)
    given = {
        "q": q,
        "k": separated_tokens(2, keys, 8, queries=q, dtype=dtype, seed=1),
        "v": torch.randn(2, keys, 5, dtype=dtype),
    }
    expected = function_with_gradients(lambda q, k, v: masked_attention(q, k, v, count=count), **given)
    actual = function_with_gradients(lambda q, k, v: convnn.knn_aggregate(q, k, v, k=count, **ATTENTION), **given)
    assert_close(actual, expected, limit=LIMITS[dtype])


@pytest.mark.parametrize("k", [1, 3, 9, None])
def test_the_layer_s_heads_attend_to_their_own_neighbours(k):
    layer = convnn.ConvNNAttention(12, 3, k=k, aggregation="sum", qkv_bias=True, dtype=torch.float64)
    x = torch.randn(2, 9, 12, dtype=torch.float64)

    def published(x: Tensor) -> Tensor:
        q, key, v = layer.qkv(x).chunk(3, dim=-1)
        heads = [slice(4 * head, 4 * head + 4) for head in range(3)]
        parts = [masked_attention(q[..., part], key[..., part], v[..., part], count=k or 9) for part in heads]
        return layer.proj(torch.cat(parts, dim=-1))

    expected = function_with_gradients(published, x=x)
    assert_close(function_with_gradients(layer, x=x), expected)


# --------------------------------------------------------------------------------------------- neighbourhood attention
def position_in_window(at: int, size: int, dilation: int, length: int) -> list[int]:
    """The positions of one axis to which ``at`` attends: its own residue class, moved inside at the border."""
    reachable = [position for position in range(length) if position % dilation == at % dilation]
    middle = reachable.index(at)
    first = min(max(middle - size // 2, 0), len(reachable) - size)
    return reachable[first : first + size]


def neighbourhood_attention(q: Tensor, k: Tensor, v: Tensor, *, grid: tuple, size: tuple, dilation: tuple) -> Tensor:
    """Every query by itself: softmax over its window, as Hassani et al. define it."""
    positions = list(itertools.product(*(range(length) for length in grid)))
    rows = []
    for n, position in enumerate(positions):
        axes = [position_in_window(*args) for args in zip(position, size, dilation, grid, strict=True)]
        window = [positions.index(other) for other in itertools.product(*axes)]
        logits = torch.einsum("bc,bwc->bw", q[:, n], k[:, window]) / q.shape[-1] ** 0.5
        rows.append(torch.einsum("bw,bwc->bc", logits.softmax(-1), v[:, window]))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    ("grid", "size", "dilation"),
    [
        ((11,), (5,), (1,)),
        ((11,), (3,), (3,)),
        ((4, 6), (3, 3), (1, 1)),
        ((5, 3), (5, 3), (1, 1)),
        ((7, 6), (3, 5), (2, 1)),
        ((3, 4, 2), (3, 3, 1), (1, 1, 2)),
    ],
)
def test_neighbourhood_attention(grid, size, dilation, dtype):
    count, k = torch.Size(grid).numel(), torch.Size(size).numel()
    given = {name: torch.randn(2, count, 4, dtype=dtype) for name in "qkv"}
    window = convnn.Window(size, dilation, border="shift")
    expected = function_with_gradients(
        lambda q, k, v: neighbourhood_attention(q, k, v, grid=grid, size=size, dilation=dilation), **given
    )
    for impl in ("auto", "reference"):
        actual = function_with_gradients(
            lambda q, key, v, impl=impl: convnn.knn_aggregate(
                q, key, v, k=k, candidates=window, grid=grid, query_index="same", impl=impl, **ATTENTION
            ),
            q=given["q"],
            key=given["k"],
            v=given["v"],
        )
        renamed = {name.replace("of key", "of k"): tensor for name, tensor in actual.items()}
        assert_close(renamed, expected, limit=LIMITS[dtype], case=impl)


def test_a_local_knn_chooses_inside_the_window_only():
    """k below the window's size: the nearest of those that are inside."""
    x = separated_tokens(1, 20, 4)
    found = convnn.knn_search(
        x, x, 2, similarity="sqeuclidean", grid=(4, 5), candidates=convnn.Window(3), include_self=True
    )
    distance = torch.cdist(x, x)[0]
    for n in range(20):
        near = [m for m in range(20) if m != n and abs(m // 5 - n // 5) <= 1 and abs(m % 5 - n % 5) <= 1]
        assert found.index[0, n].tolist() == [n, min(near, key=lambda m: distance[n, m])]


# -------------------------------------------------------------------------------------------- dynamic graph convolution
def graph_convolution(x: Tensor, weight: Tensor, bias: Tensor, *, k: int) -> Tensor:
    """Rebuild the k-NN graph in feature space, then one matrix for every rank of nearness."""
    rows = []
    for sample in x:
        for token in sample:
            distance = (sample - token).square().sum(-1)
            nearest = distance.argsort()[:k]
            rows.append(bias + sum(weight[:, :, m] @ sample[j] for m, j in enumerate(nearest)))
    return torch.stack(rows).view(x.shape[0], x.shape[1], -1)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("k", [1, 3, 10])
def test_dynamic_graph_convolution(k, dtype):
    given = {
        "x": separated_tokens(2, 10, 4, dtype=dtype),
        "weight": torch.randn(5, 4, k, dtype=dtype),
        "bias": torch.randn(5, dtype=dtype),
    }
    expected = function_with_gradients(lambda x, weight, bias: graph_convolution(x, weight, bias, k=k), **given)
    for options in ({}, {"include_self": True}, {"impl": "reference"}):
        actual = function_with_gradients(
            lambda x, weight, bias, options=options: convnn.knn_aggregate(
                x, x, x, weight, bias, k=k, similarity="sqeuclidean", **options
            ),
            **given,
        )
        assert_close(actual, expected, limit=LIMITS[dtype], case=options)


def test_the_layer_is_a_dynamic_graph_convolution():
    layer = convnn.ConvNN1d(4, 5, k=3, similarity="sqeuclidean", dtype=torch.float64)
    x = separated_tokens(2, 10, 4).transpose(1, 2).requires_grad_()
    y = graph_convolution(x.transpose(1, 2), layer.weight, layer.bias, k=3).transpose(1, 2)
    expected = with_gradients(y, {"input": x, "weight": layer.weight, "bias": layer.bias})
    assert_close(layer_with_gradients(layer, x), expected)
