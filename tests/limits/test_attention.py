"""k = N with softmax and unit weights is attention: torch's function, torch's module and timm's module."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

import convnn
from convnn.testing import assert_close, covering_set, function_with_gradients, layer_with_gradients, with_gradients

LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
IMPLS = ("sdpa", "dense")
ATTENTION: dict[str, Any] = {"similarity": "dot", "weighting": "softmax"}


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def query_key_value(queries: int = 5, keys: int = 9, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    shapes = {"q": (2, queries, 8), "k": (2, keys, 8), "v": (2, keys, 6)}
    return {name: tokens(*shape, dtype=dtype) for name, shape in shapes.items()}


def knn_attention(given: dict[str, Tensor], count: int | None, **options: Any) -> dict[str, Tensor]:
    """The operator's output and gradients, with the settings of attention."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return convnn.knn_aggregate(q, k, v, k=count, **ATTENTION, **options)

    return function_with_gradients(attend, **given)


def native_attention(given: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    return function_with_gradients(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), **given)


# -------------------------------------------------------------------------------------- F.scaled_dot_product_attention
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (5, 9), (9, 5), (1, 6), (6, 1)])
@pytest.mark.parametrize("impl", ["auto", *IMPLS])
def test_scaled_dot_product_attention(impl, queries, keys, scale, dtype):
    given = query_key_value(queries, keys, dtype)
    expected = native_attention(given, scale=scale)
    for count in (keys, None):
        assert_close(knn_attention(given, count, scale=scale, impl=impl), expected, limit=LIMITS[dtype])


def test_attention_runs_the_native_kernel():
    q, k, v = query_key_value().values()
    assert convnn.explain_choice(q, k, v, k=9, **ATTENTION).impl == "sdpa"
    assert convnn.explain_choice(q, k, v, k=8, **ATTENTION).impl != "sdpa"
    assert convnn.explain_choice(q, k, v, k=9, similarity="cosine", weighting="softmax").impl != "sdpa"
    assert convnn.explain_choice(q, k, v, torch.ones(6, 1, 9).double(), groups=6, k=9, **ATTENTION).impl != "sdpa"


@pytest.mark.parametrize("impl", IMPLS)
def test_the_temperature_divides_the_logits(impl):
    given = query_key_value()
    actual = knn_attention(given, 9, scale=0.7, temperature=2.5, impl=impl)
    assert_close(actual, native_attention(given, scale=0.7 / 2.5))


@pytest.mark.parametrize("impl", IMPLS)
def test_masked_keys_of_attention(impl):
    given = query_key_value()
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 6:] = mask[1, ::2] = True
    actual = knn_attention(given, None, key_padding_mask=mask, impl=impl)
    assert_close(actual, native_attention(given, attn_mask=~mask.unsqueeze(1)))


# ----------------------------------------------------------------------------------------------- nn.MultiheadAttention
MULTIHEAD = {
    "cross": (False, True),
    "batch_first": (False, True),
    "masked": (False, True),
    "weights": (None, "averaged", "per head"),
    "bias": (False, True),
    "unbatched": (False, True),
    "impl": ("auto", "sdpa", "dense"),
    "dtype": tuple(LIMITS),
}


@pytest.mark.parametrize("case", covering_set(MULTIHEAD), ids=lambda case: "-".join(map(str, case.values())))
def test_multihead_attention(case):
    dtype, keys = case["dtype"], 9 if case["cross"] else 7
    attention = nn.MultiheadAttention(12, 3, bias=case["bias"], batch_first=case["batch_first"], dtype=dtype)
    with torch.no_grad():
        for parameter in attention.parameters():  # its biases start at zero, which hides them
            parameter.copy_(0.4 * torch.randn_like(parameter))
    layer = convnn.ConvNNMultiheadAttention.from_attention(attention, impl=case["impl"])
    query, memory = tokens(2, 7, 12, dtype=dtype), tokens(2, keys, 12, dtype=dtype)
    mask = torch.zeros(2, keys, dtype=torch.bool)
    mask[0, 5:] = mask[1, 1] = True
    if case["unbatched"]:
        query, memory, mask = query[0], memory[0], mask[0]
    elif not case["batch_first"]:
        query, memory = query.transpose(0, 1), memory.transpose(0, 1)
    options = {
        "key_padding_mask": mask if case["masked"] else None,
        "need_weights": case["weights"] is not None,
        "average_attn_weights": case["weights"] == "averaged",
    }
    results = []
    for module in (layer, attention):
        q = query.clone().requires_grad_()
        m = memory.clone().requires_grad_() if case["cross"] else q
        out, weights = module(q, m, m, **options)
        named = with_gradients(out, {"query": q, "memory": m, **dict(module.named_parameters())})
        results.append(named | ({} if weights is None else {"weights": weights}))
    assert ("weights" in results[0]) == (case["weights"] is not None)
    assert_close(*results, limit=LIMITS[dtype])


def test_multihead_attention_with_different_keys_and_values():
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    layer = convnn.ConvNNMultiheadAttention.from_attention(attention)
    q, k, v = tokens(2, 5, 8), tokens(2, 7, 8), tokens(2, 7, 8)

    def results(module: nn.Module) -> dict[str, Tensor]:
        return function_with_gradients(lambda query, key, value: module(query, key, value)[0], query=q, key=k, value=v)

    assert_close(results(layer), results(attention))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("impl", ["auto", "dense"])
def test_the_self_attention_layer_takes_multihead_attention_s_weights(impl, bias):
    attention = nn.MultiheadAttention(12, 3, bias=bias, batch_first=True, dtype=torch.float64)
    layer = convnn.ConvNNAttention.from_attention(attention, impl=impl)
    x = tokens(2, 7, 12).requires_grad_()
    expected = with_gradients(attention(x, x, x)[0], {"input": x, **dict(attention.named_parameters())})
    renamed = {
        name.replace("in_proj_", "qkv.").replace("out_proj.", "proj."): tensor for name, tensor in expected.items()
    }
    assert_close(layer_with_gradients(layer, x), renamed)


@pytest.fixture
def calls(monkeypatch):
    """The calls of our attention. No hook counts them: torch's fast path keeps away from modules with hooks."""
    counted: list[nn.Module] = []
    forward = convnn.ConvNNMultiheadAttention.forward

    def counting(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        counted.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(convnn.ConvNNMultiheadAttention, "forward", counting)
    return counted


def make_encoder(k: int | None = None, **options: Any) -> tuple[nn.Module, nn.Module]:
    """An encoder layer, and a copy with our attention."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64, **options)
    ours = copy.deepcopy(layer)
    ours.self_attn = convnn.ConvNNMultiheadAttention.from_attention(layer.self_attn, k)
    return layer, ours


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_layer_calls_our_attention(training, norm_first, masked, calls):
    theirs, ours = make_encoder(norm_first=norm_first)
    mask = torch.tensor([[False] * 5, [False, False, True, False, True]]) if masked else None
    x = tokens(2, 5, 8)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            results = [{"y": module.train(training)(x, src_key_padding_mask=mask)} for module in (ours, theirs)]
        if masked:  # torch's fast path leaves the masked queries' own results out
            results = [{"y": result["y"][~mask]} for result in results]
        assert_close(*results)
    assert len(calls) == 2


def test_an_encoder_s_fast_path_does_not_replace_the_k_nearest(calls):
    """In evaluation torch fuses the layer from the attention's weights: k < N must survive that."""
    theirs, ours = make_encoder(k=2)
    encoder = nn.TransformerEncoder(ours, 2, enable_nested_tensor=False)
    x = tokens(2, 5, 8)
    with torch.no_grad():
        fast = encoder.eval()(x)
        assert len(calls) == 2
        assert_close({"y": fast}, {"y": encoder.train()(x)})
        assert not torch.allclose(fast, nn.TransformerEncoder(theirs, 2, enable_nested_tensor=False).train()(x))


# ----------------------------------------------------------------------------------------------------- timm's Attention
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    "options",
    [
        {name: True for name, on in zip(("qkv_bias", "qk_norm", "scale_norm"), switches, strict=True) if on}
        for switches in itertools.product((False, True), repeat=3)
    ]
    + [{"proj_bias": False}, {"attn_head_dim": 6}, {"dim_out": 10}, {"gated": True, "qkv_bias": True}],
    ids=str,
)
def test_timm_attention(options, dtype, fused):
    norm = nn.LayerNorm if {"qk_norm", "scale_norm"} & options.keys() else None
    attention = Attention(12, 3, norm_layer=norm, **options).to(dtype)
    attention.fused_attn = fused
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = tokens(2, 9, 12, dtype=dtype)
    expected = layer_with_gradients(attention, x)
    for impl in ("auto", *IMPLS):
        actual = layer_with_gradients(convnn.ConvNNAttention.from_attention(attention, impl=impl), x)
        if options.get("qk_norm"):  # softmax does not see what is added to every key: nothing but rounding errors
            assert actual.pop("gradient of k_norm.bias").abs().max() < LIMITS[dtype]
        assert_close(actual, {name: expected[name] for name in actual}, limit=LIMITS[dtype], case=impl)


def test_timm_attention_of_a_transformer_s_own_kind():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3).double().eval()
    image = tokens(1, 3, 32, 32)
    expected = layer_with_gradients(model, image)
    block = model.blocks[0]
    block.attn = convnn.ConvNNAttention.from_attention(block.attn)
    assert_close(layer_with_gradients(model, image), expected)


def test_every_token_and_unit_slot_weights_are_attention():
    """ConvNN attention with as many neighbours as tokens: its depthwise weights start at one."""
    attention = Attention(12, 3).double()
    layer = convnn.ConvNNAttention.from_attention(attention, k=9, aggregation="depthwise")
    x = tokens(2, 9, 12)
    actual, expected = layer_with_gradients(layer, x), layer_with_gradients(attention, x)
    assert actual.pop("gradient of weight").shape == (4, 1, 9)
    assert_close(actual, expected)
