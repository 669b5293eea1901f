"""The alternatives: convolution, attention, the algorithm written plainly, other searches.

Each function returns a maker of steps; packages that are not installed leave their searches out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import native
from ..knn import knn_search
from ..ops.native import native_nearest
from .steps import Function, Maker, Step, features, step_of

K = 9
HEADS = 24
"""8 samples with 3 heads each."""


def convolution(shape: tuple[int, int, int]) -> Maker:
    """nn.Conv2d(C, C, 3, padding=1) on a map in the usual memory format."""
    channels = shape[1]
    return lambda grad: step_of(nn.Conv2d(channels, channels, 3, padding=1), features(shape, channels_last=False), grad)


def bare_products(shape: tuple[int, int, int]) -> Maker:
    """The bare products of a full search and of its aggregation: a lower bound for implementations on these kernels."""
    batch, channels, side = shape

    def make(grad: bool) -> Step:
        tokens, weight = torch.randn(batch, side * side, channels), torch.randn(channels, channels * K)
        gathered = torch.randn(batch * side * side, channels * K)

        def aggregate(x: Tensor, w: Tensor) -> Tensor:
            with torch.no_grad():
                for sample in tokens:
                    sample @ sample.t()
            return x @ w.t()

        return step_of(Function(aggregate, weight), gathered, grad)

    return make


def without_library(make: Maker) -> Maker:
    """The same task in plain PyTorch."""

    def plain(grad: bool) -> Step:
        with native.at_level("off"):
            step = make(grad)

        def run() -> None:
            with native.at_level("off"):
                step()

        return run

    return plain


def masked_dense_attention(queries: int) -> Maker:
    """k-NN attention as it is usually written (KVT): the full matrix, all but its k best set to -inf."""

    def attend(x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = x @ key.transpose(1, 2) * 64**-0.5
        best = scores.topk(K, dim=-1).indices
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        mixed: Tensor = scores.masked_fill(~kept, -torch.inf).softmax(-1) @ value
        return mixed

    return attention(attend, queries)


def standard_attention(queries: int, heads: int = HEADS) -> Maker:
    """F.scaled_dot_product_attention, in the four axes that its fused kernels take."""

    def attend(x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)).squeeze(1)

    return attention(attend, queries, heads)


def attention(attend: Callable[..., Tensor], queries: int, heads: int = HEADS) -> Maker:
    """Attention with so many heads of width 64 in all, by some function of query, key and value."""

    def make(grad: bool) -> Step:
        query, key, value = torch.randn(3, heads, queries, 64)
        return step_of(Function(attend, key, value), query, grad)

    return make


def gather_and_einsum(shape: tuple[int, int, int], *, depthwise: bool) -> Maker:
    """Neighbours given: a gathered copy of every token, then one einsum."""

    def make(grad: bool) -> Step:
        tokens = features(shape).flatten(2).transpose(1, 2).contiguous()
        neighbors = knn_search(tokens, tokens, K)

        def run(x: Tensor, weight: Tensor) -> Tensor:
            flat = neighbors.index.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[2])
            gathered = x.gather(1, flat).unflatten(1, (-1, K))
            if depthwise:
                return torch.einsum("bnkc,ck->bnc", gathered, weight.squeeze(1))
            return torch.einsum("bnkc,bnk->bnc", gathered, neighbors.similarity.softmax(-1)) * weight.sum()

        return step_of(Function(run, torch.randn(shape[1], 1, K)), tokens, grad)

    return make


def other_searches() -> dict[str, Callable[[Tensor], object]]:
    """Return the installed exact Euclidean searches of other libraries; each takes tokens ``(B, N, C)``."""
    known: dict[str, tuple[str, Callable[[Tensor], object]]] = {
        "torch": ("torch.cdist + topk", _distances_and_topk),
        "torch_cluster": ("torch-cluster knn", _torch_cluster),
        "faiss": ("faiss IndexFlatL2", _faiss),
        "sklearn": ("scikit-learn brute force", _sklearn),
    }
    return dict(search for package, search in known.items() if find_spec(package) is not None)


def _distances_and_topk(tokens: Tensor) -> object:
    """As dynamic graph convolutions write it."""
    return torch.cdist(tokens, tokens).topk(K, largest=False)


def search_around_one_center(tokens: Tensor) -> Tensor:
    """Search by float32 products alone, which is exact only for tokens around one point."""
    around = tokens - tokens.mean(1, keepdim=True)
    return native_nearest(around, around, -0.5 * around.square().sum(-1), None, None, K, False)


def _torch_cluster(tokens: Tensor) -> object:
    from torch_cluster import knn

    batch, count, _ = tokens.shape
    flat, sample = tokens.flatten(0, 1), torch.arange(batch).repeat_interleave(count)
    return knn(flat, flat, K, sample, sample)


def _faiss(tokens: Tensor) -> object:
    import faiss

    results: list[Any] = []
    for sample in tokens.numpy():
        index = faiss.IndexFlatL2(sample.shape[1])
        index.add(sample)
        results.append(index.search(sample, K))
    return results


def _sklearn(tokens: Tensor) -> object:
    from sklearn.neighbors import NearestNeighbors

    return [NearestNeighbors(n_neighbors=K, algorithm="brute").fit(x).kneighbors(x) for x in tokens.numpy()]
