"""The weights that multihead attention returns are those that made its output: one search, one dropout."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnn import (
    Blend,
    ConvNNAttention,
    ConvNNError,
    ConvNNMultiheadAttention,
    Grid,
    Neighbors,
    Random,
    Window,
)

from ..operators import derivatives

B, H, N, C = 2, 3, 7, 12


def multihead(**options: Any) -> ConvNNMultiheadAttention:
    given: dict[str, Any] = {"batch_first": True, "aggregation": "sum", "k": 3, "dtype": torch.float64, **options}
    layer = ConvNNMultiheadAttention(C, H, **given)
    nn.init.normal_(layer.in_proj_bias, std=0.3)
    nn.init.normal_(layer.out_proj.bias)
    return layer


def tokens(*shape: int) -> Tensor:
    return torch.randn(*(shape or (B, N, C)), dtype=torch.float64)


def attended(layer: ConvNNMultiheadAttention, weights: Tensor, value: Tensor) -> Tensor:
    """By the equations: ``weights @ value`` head by head, and the output projection."""
    values = nn.functional.linear(value, layer.in_proj_weight[2 * C :], layer.in_proj_bias[2 * C :])
    heads = torch.einsum("bhnm,bmhc->bnhc", weights, values.unflatten(2, (H, C // H)))
    return layer.out_proj(heads.flatten(2))


SEARCHES: list[dict[str, Any]] = [
    {},
    {"k": None},
    {"k": None, "similarity": "cosine", "temperature": 0.2},
    {"k": None, "candidates": Window(5, border="shift")},
    {"k": None, "scale": 0.3, "temperature": 2.0},
    {"candidates": Random(4)},
    {"candidates": Random(99), "k": None, "similarity": "sqeuclidean"},
    {"candidates": Grid(4), "similarity": "euclidean"},
    {"similarity": Blend(0.5), "include_self": True},
    {"similarity": "spatial"},
]


@pytest.mark.parametrize("weighting", ["softmax", "identity", "ones"])
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_returned_weights_made_the_output(search: dict[str, Any], weighting: str) -> None:
    options = {name: value for name, value in search.items() if name != "temperature" or weighting == "softmax"}
    layer, x = multihead(**options, weighting=weighting, dropout=0.4).train(), tokens()
    for _ in range(2):
        y, weights = layer(x, x, x, average_attn_weights=False)
        torch.testing.assert_close(y, attended(layer, weights, x), rtol=0, atol=1e-11)
        averaged = layer.eval()(x, x, x)[1]
        torch.testing.assert_close(averaged, layer(x, x, x, average_attn_weights=False)[1].mean(1))
        layer.train()
    torch.testing.assert_close(layer.eval()(x, x, x)[0], layer(x, x, x, need_weights=False)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("search", [{}, {"k": None}, {"k": None, "similarity": "cosine"}], ids=str)
def test_masked_keys_have_no_weight(search: dict[str, Any]) -> None:
    layer, x, memory = multihead(**search, dropout=0.2), tokens(), tokens(B, 9, C)
    mask = torch.zeros(B, 9, dtype=torch.bool)
    mask[0, 6:] = mask[1, ::2] = True
    y, weights = layer(x, memory, memory, mask, average_attn_weights=False)
    assert not weights.masked_select(mask[:, None, None]).any()
    torch.testing.assert_close(y, attended(layer, weights, memory), rtol=0, atol=1e-11)
    y, weights = layer.eval()(x, memory, memory, mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, N).double())
    torch.testing.assert_close(y, layer(x, memory, memory, mask, need_weights=False)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("aggregation", ["standard", "depthwise", "depthwise_separable"])
def test_slot_weights_are_applied_to_the_same_neighbours(aggregation: str) -> None:
    layer, x = multihead(aggregation=aggregation, candidates=Random(4)).eval(), tokens()
    nn.init.normal_(layer.weight)
    torch.testing.assert_close(layer(x, x, x)[0], layer(x, x, x, need_weights=False)[0], rtol=0, atol=1e-11)
    layer.train()
    y, weights = layer(x, x, x, average_attn_weights=False)
    if aggregation == "depthwise":  # a neighbour's slot is its rank, the query itself first
        nn.init.ones_(layer.weight)
        torch.manual_seed(0)
        y, weights = layer(x, x, x, average_attn_weights=False)
        torch.testing.assert_close(y, attended(layer, weights, x), rtol=0, atol=1e-11)
    assert torch.equal((weights > 0).sum(-1), torch.full((B, H, N), 3))


def test_dropout_of_the_weights_has_its_probability_and_keeps_their_mean() -> None:
    for options in ({}, {"k": None}):
        layer, x = multihead(dropout=0.3, **options), tokens(1, N, C)
        exact = layer.eval()(x, x, x, average_attn_weights=False)[1]
        many = layer.train()(*[x.expand(4000, -1, -1)] * 3, average_attn_weights=False)[1].detach()
        kept = (many > 0).double().mean(0)
        assert ((kept - 0.7 * (exact[0] > 0)).abs() < 0.04).all()
        standard_error = many.std(0) / 4000**0.5
        assert ((many.mean(0) - exact[0]).abs() <= 5 * standard_error + 1e-12).all()


# ------------------------------------------------------------------------------------------------ second derivatives
@pytest.mark.parametrize(
    ("options", "need_weights"),
    [
        (
            {"k": None},
            True,
        ),  # without weights torch's native kernel runs, which has none
        *itertools.product([{"k": None, "similarity": "cosine"}, {}, {"aggregation": "depthwise"}], [True, False]),
        ({"weighting": "identity"}, True),
    ],
    ids=str,
)
def test_second_derivatives(options: dict[str, Any], need_weights: bool) -> None:
    layer, x = multihead(**options), tokens(1, 5, C)[:, :4].requires_grad_()

    def call(x: Tensor) -> tuple[Tensor, ...]:
        out, weights = layer(x, x, x, need_weights=need_weights)
        return (out,) if weights is None else (out, weights)

    assert torch.autograd.gradgradcheck(call, (x,), fast_mode=True)


def test_second_derivatives_are_those_of_torch_s_layer() -> None:
    theirs = nn.MultiheadAttention(C, H, batch_first=True, dtype=torch.float64)
    ours, x = ConvNNMultiheadAttention.from_attention(theirs), tokens()
    found, expected = (derivatives(lambda x: layer(x, x, x)[0], x) for layer in (ours, theirs))  # noqa: B023
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_second_derivatives_of_every_token_by_the_general_implementations(impl: str) -> None:
    layer = ConvNNAttention(8, 2, k=None, aggregation="sum", impl=impl, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(layer, (tokens(1, 4, 8).requires_grad_(),), fast_mode=True)


# ------------------------------------------------------------------------------------------------ refusals
X = tokens()
BOOL = torch.zeros(B, N, dtype=torch.bool)
FOUND = ConvNNAttention(C, H, k=3, dtype=torch.float64).neighbors(X)


def given(similarity: Any = FOUND.similarity, index: Any = FOUND.index) -> Tensor:
    return ConvNNAttention(C, H, k=3, dtype=torch.float64)(X, neighbors=Neighbors(similarity, index))


REFUSALS: dict[str, tuple[Callable[[bool], object], str]] = {
    "batch of keys": (lambda w: multihead()(X, X[:1], X[:1], None, w), r"^key: expected 2 samples .*got 1 \(shape"),
    "batch of values": (lambda w: multihead()(X, X, X[:1], None, w), r"^value: expected 2 samples as in query, got 1"),
    "batch second": (
        lambda w: multihead(batch_first=False)(tokens(5, 2, C), *[tokens(7, 3, C)] * 2, None, w),
        r"^key: expected 2 samples as in query, got 3 .*as \(tokens, batch, 12\)"),
    "tokens of values": (lambda w: multihead()(X, X, X[:, :5], None, w), r"^value: expected 7 tokens as in key, got 5"),
    "some unbatched": (lambda w: multihead()(X[0], X, X, None, w), r"^key: expected shape .*got shape \(2, 7, 12\)"),
    "rank": (lambda w: multihead()(X[0, 0], X, X, None, w), r"^query: expected shape .*got shape \(12,\)"),
    "channels": (lambda w: multihead()(X, X, X[..., :5], None, w), r"^value: expected 12 channels .*got 5"),
    "dtype": (lambda w: multihead()(X, X.float(), X, None, w), r"^key: expected torch.float64 .*got torch.float32"),
    "device": (lambda w: multihead()(X, X, X.to("meta"), None, w), r"^value: expected device cpu .*got meta"),
    "mask per head": (
        lambda w: multihead()(X, X, X, BOOL.repeat(H, 1), w), r"^key_padding_mask: expected shape \(2, 7\) .*\(6, 7\)"),
    "mask of one sample": (
        lambda w: multihead()(X[0], X[0], X[0], BOOL[:1], w), r"^key_padding_mask: .*shape \(7,\), got .*\(1, 7\)"),
    "mask of an unbatched list": (
        lambda w: multihead()(X[0], X[0], X[0], [False] * N, w), r"^key_padding_mask: .*shape \(7,\), got \[False"),
    "mask of numbers": (lambda w: multihead()(X, X, X, tokens(B, N), w), r"^key_padding_mask: .*0 and -inf, got other"),
    "mask of all": (lambda w: multihead()(X, X, X, ~BOOL, w), r"^key_padding_mask: expected at least one key left"),
    "mask of all, every key": (
        lambda w: multihead(k=None)(X, X, X, ~BOOL, w), r"^key_padding_mask: expected at least one key left"),
    "mask without softmax": (
        lambda w: multihead(k=None, weighting="ones")(X, X, X, BOOL, w), r"^k: .*None needs softmax\), got None"),
    "mask per query": (lambda w: multihead()(X, X, X, None, w, [1]), r"^attn_mask: expected None, got \[1\]; mask"),
    "k": (lambda w: multihead(k=8)(X, X, X, None, w), r"^k: expected at most 7 \(there are 7 keys\), got 8"),
    "positions": (
        lambda w: multihead(similarity="spatial")(X, X[:, :5], X[:, :5], None, w),
        r"^similarity: .*\(queries and keys are not the same tensor\), got 'spatial'; choose another"),
    "its own token": (
        lambda w: multihead(include_self=True)(X, X[:, :5], X[:, :5], None, w), r"^include_self: .*got True; choose"),
    "neighbours of other heads": (
        lambda w: given(FOUND.similarity[:, :2], FOUND.index[:, :2]), r"^neighbors: .*\(2, 3\), got \(2, 2, 7, 3\)"),
    "neighbours by int32": (lambda w: given(index=FOUND.index.int()), r"^neighbors.index: expected int64 .*int32"),
    "fewer similarities": (
        lambda w: given(FOUND.similarity[..., :2]), r"^neighbors.similarity: .*, 3\), got shape \(2, 3, 7, 2\)"),
}  # fmt: skip


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_in_the_caller_s_terms(name: str, need_weights: bool) -> None:
    call, message = REFUSALS[name]
    with pytest.raises(ConvNNError, match=message):
        call(need_weights)
