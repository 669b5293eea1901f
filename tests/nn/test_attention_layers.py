"""ConvNNAttention, ConvNNMultiheadAttention and HybridAttention: heads, weights, dropout, masks, state."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import convnn
from convnn import ConvNNAttention, ConvNNMultiheadAttention, Grid, HybridAttention, Random, Window

OPTIONS: list[dict[str, Any]] = [
    {},
    {"k": 4, "qkv_bias": True, "proj_bias": False},
    {"k": None, "aggregation": "sum"},
    {"k": 4, "aggregation": "sum", "temperature": 0.5},
    {"k": 4, "aggregation": "standard", "weighting": "identity", "similarity": "cosine"},
    {"k": 4, "aggregation": "depthwise_separable", "similarity": "euclidean", "include_self": True},
    {"k": 4, "candidates": Grid(5), "weighting": "ones"},
    {"k": 4, "candidates": Window(5, border="shift"), "scale": 2.0},
    {"k": 4, "attn_head_dim": 6, "dim_out": 5},
    {"k": 4, "qk_norm": True, "scale_norm": True},
    {"k": 4, "attn_drop": 0.25, "proj_drop": 0.5},
    {"k": 3, "similarity": "spatial"},
]


def attention(options: dict[str, Any], **more: Any) -> ConvNNAttention:
    return ConvNNAttention(8, 2, **{"k": 9, **options, **more})


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(shape or (2, 12, 8)), dtype=dtype)


def by_hand(layer: ConvNNAttention, x: Tensor) -> Tensor:
    """docs/layers.md, head by head and query by query: only the choice of neighbours is the layer's."""
    found = layer.neighbors(x)
    query, key, value = (part.unflatten(2, (layer.num_heads, -1)) for part in layer.qkv(x).chunk(3, dim=2))
    query, key = layer.q_norm(query), layer.k_norm(key)
    out = torch.zeros_like(value)
    for b, h, n in torch.cartesian_prod(*map(torch.arange, found.index.shape[:3])).tolist():
        chosen, similarity = found.index[b, h, n], found.similarity[b, h, n]
        if layer.similarity == "dot":
            scale = layer.scale or layer.head_dim**-0.5
            similarity = scale * key[b, chosen, h] @ query[b, n, h]
            torch.testing.assert_close(similarity, found.similarity[b, h, n])
        rho = {
            "softmax": (similarity / layer.temperature).softmax(0),
            "identity": similarity,
            "ones": torch.ones_like(similarity),
        }[layer.weighting]
        near = rho[:, None] * value[b, chosen, h]
        if layer.weight is None:
            out[b, n, h] = near.sum(0)
        elif layer.weight.shape[1] == 1:
            out[b, n, h] = (near * layer.weight[:, 0].T).sum(0)
        else:
            out[b, n, h] = torch.einsum("kc,ock->o", near, layer.weight)
        if layer.pointwise is not None:
            out[b, n, h] = layer.pointwise.weight @ out[b, n, h]
    return layer.proj(layer.norm(out.flatten(2)))


@pytest.mark.parametrize("options", OPTIONS)
def test_forward_is_the_method_head_by_head(options: dict[str, Any]) -> None:
    layer, x = attention(options, dtype=torch.float64).eval(), tokens()
    with torch.no_grad():
        if layer.weight is not None:
            layer.weight.normal_()
        torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=0, atol=1e-12)
    assert layer.neighbors(x).index.shape == (2, 2, 12, options.get("k", 9) or 12)


def test_slot_weights_start_at_one_and_are_shared_by_the_heads() -> None:
    assert torch.equal(attention({}).weight, torch.ones(4, 1, 9))
    assert attention({"aggregation": "standard"}).weight.shape == (4, 4, 9)
    assert attention({"aggregation": "sum"}).weight is None


def test_at_the_start_convnn_attention_is_knn_attention() -> None:
    layer, knn, x = attention({}).double(), attention({"aggregation": "sum"}).double(), tokens()
    knn.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if name != "weight"})
    torch.testing.assert_close(layer(x), knn(x), rtol=0, atol=1e-12)


def test_the_same_seed_draws_the_numbers_of_what_is_replaced() -> None:
    torch.manual_seed(4)
    theirs = timm.layers.Attention(8, 2, qkv_bias=True)
    torch.manual_seed(4)
    ours = attention({"qkv_bias": True})
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    torch.manual_seed(4)
    theirs = nn.MultiheadAttention(8, 2)
    torch.manual_seed(4)
    ours = ConvNNMultiheadAttention(8, 2)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_repr_is_the_call_that_made_the_layer(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    layer = attention(options).eval()
    torch.manual_seed(1)
    twin = eval(f"ConvNNAttention({layer.extra_repr()})", dict(vars(convnn))).eval()
    assert repr(twin) == repr(layer)
    x = tokens(dtype=torch.float32)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"bias": False, "k": 3}, {"dropout": 0.2, "batch_first": True}])
def test_the_repr_of_multihead_is_the_call_that_made_it(options: dict[str, Any]) -> None:
    layer = ConvNNMultiheadAttention(8, 2, **options)
    twin = eval(f"ConvNNMultiheadAttention({layer.extra_repr()})", dict(vars(convnn)))
    assert twin.state_dict().keys() == layer.state_dict().keys()
    assert (twin.dropout, twin.batch_first, twin.k) == (layer.dropout, layer.batch_first, layer.k)


@pytest.mark.parametrize("options", OPTIONS)
def test_copies_pickles_and_saved_states_answer_alike(options: dict[str, Any]) -> None:
    layer, x = attention(options).eval(), tokens(dtype=torch.float32)
    before, expected = dict(vars(layer)), layer(x)
    layer.neighbors(x)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = attention(options).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    assert vars(layer) == before
    assert attention(options, device="meta")(x.to("meta")).shape == expected.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS)
def test_lower_precision_is_finite_and_near(options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = attention(options, dtype=dtype).eval()
    exact = copy.deepcopy(layer).double()
    x = tokens(dtype=dtype).requires_grad_()
    y, near = layer(x), exact(x.detach().double())
    y.sum().backward()
    assert y.dtype == dtype
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
    assert x.grad.isfinite().all()
    # A projection rounds before the search, so a few queries may choose other neighbours than in double.
    error = (y.double() - near).abs().amax(2) / near.abs().max()
    assert (error < 64 * torch.finfo(dtype).eps).double().mean() > (0.99 if dtype == torch.float32 else 0.7)


# ------------------------------------------------------------------------------------------------ dropout
@pytest.mark.parametrize("options", [{"k": 4}, {"k": 4, "aggregation": "sum"}, {"k": None, "aggregation": "sum"}])
def test_dropout_keeps_the_mean_and_drops_its_share(options: dict[str, Any]) -> None:
    layer, x = attention(options, attn_drop=0.4, dtype=torch.float64), tokens(1, 6, 8)
    assert torch.equal(layer.eval()(x), layer(x))
    expected = layer(x)
    layer.train()
    draws = layer(x.expand(6000, -1, -1)).detach()
    standard_error = draws.std(0) / 6000**0.5
    assert ((draws.mean(0) - expected[0]).abs() < 5 * standard_error).all()
    layer.attn_drop.p = 0.0
    torch.testing.assert_close(layer(x), expected)


def test_dropout_drops_neighbours_independently_with_its_probability() -> None:
    layer = ConvNNAttention(1, 1, k=2, aggregation="sum", weighting="ones", attn_drop=0.3, proj_bias=False)
    for p in layer.parameters():
        nn.init.ones_(p)
    y = layer(torch.ones(5000, 4, 1)).flatten() * 0.7  # the number of neighbours that were kept
    for kept, chance in enumerate((0.09, 0.42, 0.49)):
        assert ((y - kept).abs() < 1e-4).double().mean().item() == pytest.approx(chance, abs=0.02)


# ------------------------------------------------------------------------------------------------ multihead, masks
def test_multihead_returns_the_weights_of_its_neighbours() -> None:
    layer, x = ConvNNMultiheadAttention(8, 2, k=3, batch_first=True, aggregation="sum").double(), tokens()
    y, weights = layer(x, x, x, average_attn_weights=False)
    assert weights.shape == (2, 2, 12, 12)
    assert torch.equal((weights > 0).sum(-1), torch.full((2, 2, 12), 3))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 12).double())
    value = nn.functional.linear(x, layer.in_proj_weight[16:], layer.in_proj_bias[16:]).unflatten(2, (2, 4))
    attended = torch.einsum("bhnm,bmhc->bnhc", weights, value).flatten(2)
    torch.testing.assert_close(y, layer.out_proj(attended), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x, x, x)[1], weights.mean(1))
    assert layer(x, x, x, need_weights=False)[1] is None


def test_multihead_layouts_agree() -> None:
    first, x, memory = ConvNNMultiheadAttention(8, 2, k=3, batch_first=True).double(), tokens(2, 5, 8), tokens()
    second = ConvNNMultiheadAttention(8, 2, k=3).double()
    second.load_state_dict(first.state_dict())
    y = first(x, memory, memory)[0]
    torch.testing.assert_close(second(x.mT.permute(2, 0, 1), *[memory.transpose(0, 1)] * 2)[0].transpose(0, 1), y)
    torch.testing.assert_close(first(x[0], memory[0], memory[0])[0], y[0])


@pytest.mark.parametrize(
    "make", [attention, lambda o: HybridAttention(8, 2, **o), lambda o: HybridAttention(8, 2, partner="conv", **o)]
)
def test_a_masked_token_is_seen_by_nobody(make: Any) -> None:
    layer, x = make({"k": 4}).double().eval(), tokens()
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 9:] = True
    other = x.clone()
    other[:, 9:] = 5 * torch.randn(2, 3, 8, dtype=torch.float64)
    ours, theirs = (layer(z, key_padding_mask=mask)[:, :9] for z in (x, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert layer.neighbors(x, mask).index.max() < 9
    assert not torch.allclose(layer(x)[:, :9], layer(other)[:, :9])


def test_random_candidates_repeat_in_evaluation_alone() -> None:
    layer, x = attention({"k": 3, "candidates": Random(4)}).double(), tokens()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer.neighbors(x).index[..., 0], torch.arange(12).expand(2, 2, 12))


# ------------------------------------------------------------------------------------------------ hybrid
@pytest.mark.parametrize("partner", ["attention", "conv"])
@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0), (0.25, 2), (0.5, 4), (0.75, 6), (1.0, 8)])
def test_hybrid_attention_splits_the_channels_convnn_first(partner: str, ratio: float, share: int) -> None:
    layer, x = HybridAttention(8, 2, k=4, branch_ratio=ratio, partner=partner, kernel_size=5).double(), tokens()
    outputs = []
    if share:
        outputs.append(layer.convnn(x[..., :share]))
    if share < 8 and partner == "attention":
        full = ConvNNAttention(8 - share, 2, k=None, aggregation="sum").double()
        full.load_state_dict(layer.attention.state_dict())
        outputs.append(full(x[..., share:]))
    elif share < 8:
        rest = x[..., share:].transpose(1, 2)
        outputs.append(nn.functional.conv1d(rest, layer.conv.weight, layer.conv.bias, padding=2).transpose(1, 2))
    torch.testing.assert_close(layer(x), layer.mix(torch.cat(outputs, 2)), rtol=0, atol=1e-12)
    assert (layer.convnn is None) == (share == 0)
    assert (layer.attention is None) == (share == 8 or partner == "conv")
    assert (layer.conv is None) == (share == 8 or partner == "attention")
    assert layer.mix.bias is not None
    if share:
        assert torch.equal(layer.neighbors(x).index, layer.convnn.neighbors(x[..., :share]).index)


HYBRIDS: list[dict[str, Any]] = [
    {},
    {"partner": "conv", "kernel_size": 5},
    {"branch_ratio": 0.25, "qkv_bias": True, "k": 3, "similarity": "cosine"},
    {"branch_ratio": 0.0, "attn_drop": 0.1},
    {"branch_ratio": 1.0, "candidates": Grid(4), "proj_bias": False, "k": 2},
]


@pytest.mark.parametrize("options", HYBRIDS)
def test_hybrid_attention_is_copied_pickled_and_trained(options: dict[str, Any]) -> None:
    layer, x = HybridAttention(8, 2, **options).eval(), tokens(dtype=torch.float32)
    fresh = HybridAttention(8, 2, **options).eval()
    fresh.load_state_dict(layer.state_dict())
    for twin in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("options", HYBRIDS)
def test_the_repr_of_hybrid_attention_is_the_call_that_made_it(options: dict[str, Any]) -> None:
    layer = HybridAttention(8, 2, **options)
    twin = eval(f"HybridAttention({layer.extra_repr()})", dict(vars(convnn)))
    assert repr(twin) == repr(layer)
    twin.load_state_dict(layer.state_dict())
    x = tokens(dtype=torch.float32)
    torch.testing.assert_close(twin.eval()(x), layer.eval()(x), rtol=0, atol=0)
