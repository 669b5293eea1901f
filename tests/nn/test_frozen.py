"""What is copied from a layer stays frozen where it was; what is drawn is trainable; modes and dtypes are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from convnn import ConvNN2d, ConvNNAttention, ConvNNError, ConvNNMultiheadAttention, convert


def timm_attention(**options: Any) -> nn.Module:
    return timm.layers.Attention(8, 2, qk_norm=True, scale_norm=True, gated=True, norm_layer=nn.LayerNorm, **options)


def multihead(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(8, 2, batch_first=True, **options)


MULTIHEAD = {
    "qkv.weight": "in_proj_weight",
    "qkv.bias": "in_proj_bias",
    "proj.weight": "out_proj.weight",
    "proj.bias": "out_proj.bias",
}


def froze(layer: nn.Module, names: set[str]) -> nn.Module:
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in names)
    return layer


# id: the original, its replacement, and the original's name of a copied parameter.
Case = tuple[Callable[..., nn.Module], Callable[[nn.Module], nn.Module], Callable[[str], str]]
COPIES: dict[str, Case] = {
    "timm": (timm_attention, lambda a: ConvNNAttention.from_attention(a, 3, aggregation="depthwise"), str),
    "timm, convert": (timm_attention, lambda a: convert(a, "convnn", k=3, init="from_original"), str),
    "multihead": (multihead, lambda a: ConvNNMultiheadAttention.from_attention(a, 3), str),
    "multihead, convert": (multihead, lambda a: convert(a, "convnn", k=3, init="from_original"), str),
    "multihead as timm's": (multihead, lambda a: ConvNNAttention.from_attention(a, 3), lambda n: MULTIHEAD.get(n, n)),
    "convolution": (lambda **o: nn.Conv2d(4, 6, 3, padding=1, **o), lambda c: ConvNN2d.from_conv(c), str),
    "convolution, convert": (
        lambda **o: nn.Conv2d(4, 6, 3, padding=1, **o), lambda c: convert(c, "convnn", init="from_original"), str),
    "hybrid": (
        lambda **o: nn.Conv2d(4, 6, 3, padding=1, **o), lambda c: convert(c, "hybrid", init="from_original"),
        lambda n: n.removeprefix("conv.")),
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_copies_stay_frozen_and_new_weights_are_trainable(name: str) -> None:
    make, replace, original_of = COPIES[name]
    names = [name for name, _ in make().named_parameters()]
    for frozen in [set(), set(names), *[{name} for name in names], *[set(names) - {name} for name in names]]:
        new = replace(froze(make(), frozen))
        for ours, parameter in new.named_parameters():
            assert parameter.requires_grad == (original_of(ours) not in frozen), (ours, frozen)


@pytest.mark.parametrize("to", ["convnn", "hybrid"])
@pytest.mark.parametrize(
    "make", [timm_attention, multihead, lambda: nn.Conv2d(4, 6, 3, padding=1), lambda: timm.layers.Attention(8, 2)]
)
def test_what_is_drawn_is_trainable(make: Callable[[], nn.Module], to: Any) -> None:
    original = make().requires_grad_(False)
    try:
        new = convert(original, to, k=3, branch_ratio=0.5) if to == "hybrid" else convert(original, to, k=3)
    except ConvNNError:  # the hybrid attention takes timm's plain one only
        assert to == "hybrid"
        return
    assert all(parameter.requires_grad for parameter in new.parameters())
    kept = dict(original.named_parameters())
    drawn = [name for name, p in new.named_parameters() if name in kept and p.dim() > 1 and torch.equal(p, kept[name])]
    assert not drawn


class OwnNorm(nn.Module):
    """A norm inside a norm, of which the outer part cannot be initialised again."""

    def __init__(self, width: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((width,), 3.0, device=device, dtype=dtype))
        self.inner = nn.Sequential(nn.LayerNorm(width, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)


def test_what_cannot_be_drawn_is_a_copy_and_stays_frozen() -> None:
    attention = timm.layers.Attention(8, 2, qk_norm=True, norm_layer=OwnNorm)
    with torch.no_grad():
        attention.q_norm.inner[0].weight.fill_(5.0)
    new: Any = convert(attention.requires_grad_(False), "convnn", k=3)
    assert not new.q_norm.factor.requires_grad
    assert torch.equal(new.q_norm.factor, attention.q_norm.factor)
    assert new.q_norm.inner[0].weight.requires_grad
    assert torch.equal(new.q_norm.inner[0].weight, torch.ones(4))


# ------------------------------------------------------------------------------------------------ modes, dtypes, biases
@pytest.mark.parametrize("init", ["random", "from_original"])
@pytest.mark.parametrize("training", [True, False])
def test_every_part_keeps_its_mode(training: bool, init: Any) -> None:
    attention = timm.layers.Attention(8, 2, qk_norm=True, norm_layer=nn.LayerNorm, attn_drop=0.1, proj_drop=0.2)
    attention.train(training)
    for part in (attention.q_norm, attention.proj_drop, attention.proj):
        part.train(not training)
    new = convert(attention, "convnn", k=3, init=init)
    modes = {name: part.training for name, part in attention.named_modules()}
    assert {name: part.training for name, part in new.named_modules()} == modes


def test_every_parameter_keeps_its_dtype_and_values() -> None:
    attention = multihead().double()
    attention.out_proj.to(torch.bfloat16)
    for new, names in (
        (ConvNNMultiheadAttention.from_attention(attention), {name: name for name in MULTIHEAD.values()}),
        (ConvNNAttention.from_attention(attention), MULTIHEAD),
    ):
        for ours, theirs in names.items():
            assert torch.equal(new.get_parameter(ours), attention.get_parameter(theirs))
            assert new.get_parameter(ours).dtype == attention.get_parameter(theirs).dtype


@pytest.mark.parametrize("missing", ["in_proj_bias", "out_proj.bias"])
@pytest.mark.parametrize("kind", [ConvNNAttention, ConvNNMultiheadAttention])
def test_a_bias_on_one_side_alone_is_the_same_function(kind: Any, missing: str) -> None:
    attention = multihead().double()
    for bias in (attention.in_proj_bias, attention.out_proj.bias):
        nn.init.normal_(bias)
    owner, _, leaf = missing.rpartition(".")
    attention.get_submodule(owner).register_parameter(leaf, None)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    new = kind.from_attention(attention)
    out = new(x) if kind is ConvNNAttention else new(x, x, x)[0]
    projected = nn.functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in projected.chunk(3, dim=2))
    attended = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = nn.functional.linear(attended, attention.out_proj.weight, attention.out_proj.bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("to", ["convnn", "hybrid"])
def test_a_bias_that_the_convolution_has_not_starts_at_zero(to: Any) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False).requires_grad_(False)
    new: Any = convert(conv, to, init="from_original", bias=True, similarity="spatial")
    bias = new.bias if to == "convnn" else new.conv.bias
    assert torch.equal(bias, torch.zeros_like(bias))
    assert bias.requires_grad
    assert not (new.weight if to == "convnn" else new.conv.weight).requires_grad


@pytest.mark.parametrize("kind", [ConvNNAttention, ConvNNMultiheadAttention])
def test_what_the_original_decides_is_no_option(kind: Any) -> None:
    for option in ("dropout", "attn_drop", "bias", "qkv_bias", "dtype"):
        with pytest.raises(ConvNNError, match="option: expected one of"):
            kind.from_attention(multihead(), **{option: 0})
