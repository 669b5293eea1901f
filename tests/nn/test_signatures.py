"""A layer takes what the layer that it replaces takes, in the same order; what has no meaning is refused in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import convnn
from convnn import (
    ConvNN1d,
    ConvNN2d,
    ConvNN3d,
    ConvNNAttention,
    ConvNNError,
    ConvNNMultiheadAttention,
    HybridAttention,
    HybridConvNN1d,
    HybridConvNN2d,
    HybridConvNN3d,
    Window,
)

Attention = timm.layers.Attention
REPLACES: dict[type[nn.Module], type[nn.Module]] = {
    ConvNN1d: nn.Conv1d,
    ConvNN2d: nn.Conv2d,
    ConvNN3d: nn.Conv3d,
    HybridConvNN1d: nn.Conv1d,
    HybridConvNN2d: nn.Conv2d,
    HybridConvNN3d: nn.Conv3d,
    ConvNNMultiheadAttention: nn.MultiheadAttention,
    ConvNNAttention: Attention,
    HybridAttention: Attention,
}
# Where ours has another default, and why.
DEFAULTS = {"k": "neighbours instead of a kernel", "kernel_size": "3", "padding": "'same' in the hybrid"}


def by_position(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]


@pytest.mark.parametrize("ours", REPLACES, ids=lambda kind: kind.__name__)
def test_the_constructor_has_the_order_and_the_defaults(ours: type[nn.Module]) -> None:
    mine, theirs = by_position(ours), by_position(REPLACES[ours])
    expected = [p.name for p in theirs]
    if issubclass(ours, ConvNN1d | ConvNN2d | ConvNN3d):
        expected[expected.index("kernel_size")] = "k"
        expected[expected.index("padding")] = "candidate_padding"
    assert [p.name for p in mine] == expected
    for one, other in zip(mine, theirs, strict=True):
        assert one.name in DEFAULTS or one.default == other.default, one.name


@pytest.mark.parametrize("ours", REPLACES, ids=lambda kind: kind.__name__)
def test_forward_has_the_order_and_the_names(ours: type[nn.Module]) -> None:
    theirs, mine = by_position(REPLACES[ours].forward), by_position(ours.forward)
    assert [p.name for p in mine][: len(theirs)] == [p.name for p in theirs]
    assert [p.default for p in mine][: len(theirs)] == [p.default for p in theirs]


# What is replaced, called with every argument by position: at its default, and with values that mean something.
CONVOLUTIONS: list[tuple[Any, ...]] = [
    (3, 1, 0, 1, 1, True, "zeros", None, None),
    (3, 2, 1, 1, 2, False, "reflect", "cpu", torch.float64),
    (3, 1, "valid", 1, 1, True, "circular", None, torch.float32),
    (3, 1, "same", 1, 2, True, "replicate", None, None),
]


@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_convolution_s_arguments_by_position(dims: int, arguments: tuple[Any, ...]) -> None:
    theirs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 6, *arguments)
    x = torch.randn(2, 4, *[7] * dims, dtype=arguments[-1])
    hybrid: Any = (HybridConvNN1d, HybridConvNN2d, HybridConvNN3d)[dims - 1](4, 6, *arguments, k=3, branch_ratio=0.0)
    assert hybrid(x).shape == theirs(x).shape
    hybrid.conv.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(hybrid(x), hybrid.mix(theirs(x)))
    kind = (ConvNN1d, ConvNN2d, ConvNN3d)[dims - 1]
    ours: Any = kind(4, 6, 3**dims, *arguments[1:], similarity="spatial")
    assert ours.groups == theirs.groups
    assert (ours.bias is None) == (theirs.bias is None)
    assert ours.weight.dtype == theirs.weight.dtype
    same = (ours.stride, ours.padding_mode, ours.dilation, ours.transposed, ours.output_padding)
    assert same == (theirs.stride, theirs.padding_mode, theirs.dilation, theirs.transposed, theirs.output_padding)
    if arguments[2] in (
        "same",
        1,
    ):  # then the queries, which are the input's tokens, stand where the kernel's centres do
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("k", "dims", "radius"), [(9, 2, 1), (25, 2, 2), (1, 2, 0), (7, 1, 3), (27, 3, 1), (125, 3, 2)]
)
def test_same_padding_is_the_radius_of_the_window(k: int, dims: int, radius: int) -> None:
    layer: Any = (ConvNN1d, ConvNN2d, ConvNN3d)[dims - 1](2, 2, k, candidate_padding="same")
    assert layer.candidate_padding == (radius,) * dims
    dilated = ConvNN2d(2, 2, 9, candidate_padding="same", candidates=Window(3, 2), similarity="spatial")
    assert dilated.candidate_padding == (2, 2)


ATTENTIONS: list[tuple[Any, ...]] = [
    (None, None, False, False, False, True, False, 0.0, 0.0, None, None, None),
    (6, 10, True, True, True, False, True, 0.1, 0.2, nn.LayerNorm, "cpu", torch.float64),
    (None, None, True, True, False, True, False, 0.0, 0.0, nn.RMSNorm, None, None),
]


@pytest.mark.parametrize("arguments", ATTENTIONS, ids=str)
def test_timm_s_arguments_by_position(arguments: tuple[Any, ...]) -> None:
    theirs = Attention(8, 2, *arguments).eval()
    ours = ConvNNAttention(8, 2, *arguments, k=None, aggregation="sum").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 8, dtype=arguments[-1])
    torch.testing.assert_close(ours(x, None, False), theirs(x, None, False))
    assert (ours.attn_drop.p, ours.proj_drop.p) == (theirs.attn_drop.p, theirs.proj_drop.p)
    for ratio in (0.0, 0.5, 1.0):
        hybrid = HybridAttention(8, 2, *arguments, k=3, branch_ratio=ratio).eval()
        assert hybrid(x, None, False).shape == theirs(x).shape
        assert repr(eval(f"HybridAttention({hybrid.extra_repr()})", dict(vars(convnn)))).count("Linear") == repr(
            hybrid
        ).count("Linear")
    alone = HybridAttention(8, 2, *arguments, branch_ratio=0.0).eval()
    inner = Attention(8, 2, *[*arguments[:1], None, *arguments[2:]]).eval()
    alone.attention.load_state_dict(inner.state_dict())
    torch.testing.assert_close(alone(x), alone.mix(inner(x)))


def test_a_gated_attention_draws_the_numbers_of_timm_s() -> None:
    torch.manual_seed(4)
    theirs = Attention(8, 2, gated=True)
    torch.manual_seed(4)
    ours = ConvNNAttention(8, 2, gated=True)
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in theirs.state_dict().items())


MULTIHEADS: list[tuple[Any, ...]] = [
    (0.0, True, False, False, None, None, False, None, None),
    (0.1, False, False, False, 8, 8, True, "cpu", torch.float64),
]


@pytest.mark.parametrize("arguments", MULTIHEADS, ids=str)
def test_multihead_s_arguments_by_position(arguments: tuple[Any, ...]) -> None:
    theirs = nn.MultiheadAttention(8, 2, *arguments).eval()
    ours = ConvNNMultiheadAttention(8, 2, *arguments, k=None, aggregation="sum").eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 5, 8, dtype=arguments[-1])
    call = (x, x, x, None, True, None, False, False)
    torch.testing.assert_close(ours(*call), theirs(*call))
    for name in (
        "embed_dim",
        "kdim",
        "vdim",
        "dropout",
        "batch_first",
        "head_dim",
        "bias_k",
        "bias_v",
        "add_zero_attn",
    ):
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_input_has_the_name_that_the_replaced_layer_gives_it() -> None:
    x: Tensor = torch.randn(1, 4, 6, 6)
    for layer in (ConvNN2d(4, 4, 3), HybridConvNN2d(4, 4, k=3)):
        assert torch.equal(layer(input=x), layer(x))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "dilation": (
        lambda: ConvNN2d(4, 4, 9, dilation=2), r"^dilation: expected 1 .*got 2; use .*=Window\(size, dilation=2\)"),
    "dilation per axis": (
        lambda: ConvNN2d(4, 4, 9, 1, 1, (1, 3)), r"dilation: .*got \(1, 3\); use .*Window\(size, dilation=\(1, 3\)\)"),
    "same with a stride": (
        lambda: ConvNN2d(4, 4, 9, 2, "same"), r"^candidate_padding: .*stride, got 'same'; give numbers"),
    "same without a window": (
        lambda: ConvNN2d(4, 4, 5, 1, "same"), r"^candidate_padding: .*odd window.*got 'same' with k=5"),
    "same of every token": (
        lambda: ConvNN2d(4, 4, None, 1, "same", aggregation="sum"), r"^candidate_padding: .*got 'same' with k=None"),
    "padding misspelt": (
        lambda: ConvNN2d(4, 4, 9, 1, "sane"), r"^candidate_padding: expected numbers, 'same' or 'valid'"),
    "padding by name": (
        lambda: ConvNN2d(4, 4, 9, padding=1), r"^padding: expected candidate_padding, .*got 1; rename it"),
    "learned keys": (
        lambda: ConvNNMultiheadAttention(8, 2, add_bias_kv=True), r"^add_bias_kv: expected False .*append such a key"),
    "zero keys": (
        lambda: ConvNNMultiheadAttention(8, 2, 0.0, True, False, True), r"^add_zero_attn: expected False .*append"),
    "other keys": (lambda: ConvNNMultiheadAttention(8, 2, kdim=6), r"^kdim: expected None, or embed_dim = 8, got 6"),
    "other values": (lambda: ConvNNMultiheadAttention(8, 2, vdim=6), r"^vdim: expected None, or embed_dim = 8, got 6"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused_in_words(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ConvNNError, match=message):
        call()
