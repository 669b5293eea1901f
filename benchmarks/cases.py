"""What is compared with what: each case makes two steps that do the same job, ours and the one that a user would keep.

A step is called without arguments. `grad` says whether it is a forward pass alone or a forward and a backward pass.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convnn
from convnn import ConvNN2d, Random

Step = Callable[[], object]
SHAPES = [(16, 64, 32), (16, 128, 16), (8, 64, 56), (8, 128, 28), (8, 256, 14), (8, 512, 7)]  # batch, channels, side
K = 9


class Case(NamedTuple):
    """A question: how does `ours` compare with `theirs`? Both take `grad` and return a step."""

    ours: Callable[[bool], Step]
    theirs: Callable[[bool], Step]
    against: str


def layer_step(layer: nn.Module, x: Tensor, grad: bool) -> Step:
    """Run a layer on an input; with `grad`, also backward to the input and the parameters."""
    if not grad:

        def forward() -> None:
            with torch.no_grad():
                layer(x)

        return forward
    inputs = [x.clone().requires_grad_(), *layer.parameters()]
    with torch.no_grad():
        upstream = torch.randn_like(layer(x))

    def both() -> None:
        torch.autograd.grad(layer(inputs[0]), inputs, upstream)

    return both


class Function(nn.Module):
    """A function of tokens with a weight, as a layer."""

    def __init__(self, function: Callable[..., Tensor], *weights: Tensor) -> None:
        super().__init__()
        self.function, self.weights = function, nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(x, *self.weights)


def channels_last(shape: tuple[int, int, int]) -> Tensor:
    """Random features in the format of tokens."""
    batch, channels, side = shape
    return torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)


def convnn_layer(shape: tuple[int, int, int], **options: object) -> Callable[[bool], Step]:
    """ConvNN2d(C, C, 9) with options."""
    return lambda grad: layer_step(ConvNN2d(shape[1], shape[1], K, **options), channels_last(shape), grad)  # type: ignore[arg-type]


def conv_layer(shape: tuple[int, int, int]) -> Callable[[bool], Step]:
    """nn.Conv2d(C, C, 3, padding=1) on a map in the usual format."""
    conv = nn.Conv2d(shape[1], shape[1], 3, padding=1)
    return lambda grad: layer_step(conv, channels_last(shape).contiguous(), grad)


def floor(shape: tuple[int, int, int]) -> Callable[[bool], Step]:
    """The bare products of a full search and of its aggregation: what no implementation on these kernels can beat."""
    batch, channels, side = shape
    tokens, weight = torch.randn(batch, side * side, channels), torch.randn(channels, channels * K)
    laid_out = torch.randn(batch * side * side, channels * K)

    def aggregate(x: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            for sample in tokens:
                sample @ sample.t()
        return x @ w.t()

    return lambda grad: layer_step(Function(aggregate, weight), laid_out, grad)


def recovered_conv(shape: tuple[int, int, int]) -> Callable[[bool], Step]:
    """The spatial ConvNN of a convolution."""
    conv = nn.Conv2d(shape[1], shape[1], 3, padding=1)
    return lambda grad: layer_step(ConvNN2d.from_conv(conv), channels_last(shape).contiguous(), grad)


def knn_attention(queries: int) -> Callable[[bool], Step]:
    """k-NN attention of 8 samples with 3 heads of width 64."""
    q, k, v = torch.randn(3, 24, queries, 64)
    run = Function(lambda x, k, v: convnn.knn_aggregate(x, k, v, k=K, similarity="dot", weighting="softmax"), k, v)
    return lambda grad: layer_step(run, q, grad)


def masked_dense_attention(queries: int) -> Callable[[bool], Step]:
    """The same as it is usually written (KVT): the full matrix, all but its k best set to -inf."""
    q, k, v = torch.randn(3, 24, queries, 64)

    def attend(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = x @ k.transpose(1, 2) * 64**-0.5
        best = scores.topk(K, dim=-1).indices
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        return scores.masked_fill(~kept, -torch.inf).softmax(-1) @ v

    return lambda grad: layer_step(Function(attend, k, v), q, grad)


def given_neighbours(shape: tuple[int, int, int], *, ours: bool, depthwise: bool) -> Callable[[bool], Step]:
    """The aggregation alone, neighbours given: a depthwise weight per slot, or a sum weighted by softmax."""
    batch, channels, side = shape
    tokens = torch.randn(batch, side * side, channels)
    found = convnn.knn_search(tokens, tokens, K)
    weight = torch.randn(channels, 1, K)

    def run(x: Tensor, w: Tensor) -> Tensor:
        if ours and depthwise:
            return convnn.knn_gather(x, found, w, groups=channels)
        if ours:
            return convnn.knn_gather(x, found, weighting="softmax") * w.sum()
        flat = found.index.flatten(1).unsqueeze(-1).expand(-1, -1, channels)
        gathered = x.gather(1, flat).unflatten(1, (-1, K))
        if depthwise:
            return torch.einsum("bnkc,ck->bnc", gathered, w.squeeze(1))
        return torch.einsum("bnkc,bnk->bnc", gathered, found.similarity.softmax(-1)) * w.sum()

    return lambda grad: layer_step(Function(run, weight), tokens, grad)


def recovered_attention(queries: int, *, ours: bool) -> Callable[[bool], Step]:
    """Standard attention by the operator, and by torch."""
    q, k, v = torch.randn(3, 24, queries, 64)
    options = {"k": None, "similarity": "dot", "weighting": "softmax"}
    operator = Function(lambda x, k, v: convnn.knn_aggregate(x, k, v, **options), k, v)
    torchs = Function(
        lambda x, k, v: F.scaled_dot_product_attention(x.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1), k, v
    )
    return lambda grad: layer_step(operator if ours else torchs, q, grad)


def cases() -> dict[str, Case]:
    """Every case by name: `question/shape`."""
    found: dict[str, Case] = {}
    for shape in SHAPES:
        at = "x".join(map(str, shape))
        sampled = {"candidates": Random(32)}
        found[f"all vs plain/{at}"] = Case(convnn_layer(shape), convnn_layer(shape, impl="dense"), "plain gather")
        found[f"all vs floor/{at}"] = Case(convnn_layer(shape), floor(shape), "bare products")
        found[f"all vs conv/{at}"] = Case(convnn_layer(shape), conv_layer(shape), "nn.Conv2d")
        plain = convnn_layer(shape, impl="dense", **sampled)
        found[f"random 32 vs plain/{at}"] = Case(convnn_layer(shape, **sampled), plain, "plain gather")
        found[f"random 32 vs conv/{at}"] = Case(convnn_layer(shape, **sampled), conv_layer(shape), "nn.Conv2d")
        found[f"recovered conv/{at}"] = Case(recovered_conv(shape), conv_layer(shape), "nn.Conv2d")
    for shape in SHAPES[:1] + SHAPES[2:3]:
        at = "x".join(map(str, shape))
        for depthwise, name in ((True, "depthwise"), (False, "sum")):
            ours, theirs = (given_neighbours(shape, ours=o, depthwise=depthwise) for o in (True, False))
            found[f"{name}, neighbours given/{at}"] = Case(ours, theirs, "gather + einsum")
    for queries in (197, 1024):
        at = f"24x{queries}x64"
        found[f"k-NN attention/{at}"] = Case(knn_attention(queries), masked_dense_attention(queries), "masked dense")
        ours, theirs = recovered_attention(queries, ours=True), recovered_attention(queries, ours=False)
        found[f"recovered attention/{at}"] = Case(ours, theirs, "F.scaled_dot_product_attention")
    return found


# A minute or two: one shape of every question.
SMALL = ("16x128x16", "24x197x64")
