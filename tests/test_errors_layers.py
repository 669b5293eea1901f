"""Misuse of the layers and of convert: the message names the argument, what is allowed, what was given, the fix."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from convnn import (
    ConversionWarning,
    ConvNN2d,
    ConvNNAttention,
    ConvNNError,
    ConvNNMultiheadAttention,
    Grid,
    HybridConvNN2d,
    Random,
    Window,
    conversion_report,
    convert,
)

from .layers import KINDS

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(0))
NAN = float("nan")


layer, hybrid = partial(ConvNN2d, 4, 4), partial(HybridConvNN2d, 4, 4)
attention, multihead, mixed = (KINDS[name] for name in ("attention", "multihead", "hybrid attention"))


def mask(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bool)


def from_conv(conv: Any) -> ConvNN2d:
    return ConvNN2d.from_conv(conv)


def from_attention(**options: Any) -> ConvNNAttention:
    return ConvNNAttention.from_attention(nn.MultiheadAttention(8, 2, **options))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))


def hooked(register: str, conv: nn.Module | None = None) -> nn.Module:
    conv = nn.Conv2d(4, 4, 3) if conv is None else conv
    getattr(conv, register)(lambda *_: None)
    return conv


def weight_normed() -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(4, 4, 3))


def convnn(model: Any = None, **options: Any) -> nn.Module:
    return convert(net() if model is None else model, "convnn", **options)


# id: what the user writes, the argument that the message must name, and fragments that it must contain.
Misuse = tuple[Callable[[], object], str, tuple[str, ...]]

LAYER: dict[str, Misuse] = {
    "no input channels": (lambda: ConvNN2d(0, 4), "in_channels", ("at least 1", "got 0")),
    "no output channels": (lambda: ConvNN2d(4, 0), "out_channels", ("at least 1", "got 0")),
    "channels a float": (lambda: ConvNN2d(4.0, 4), "in_channels", ("whole number", "got 4.0")),
    "k a kernel": (lambda: layer((3, 3)), "k", ("whole number", "got (3, 3)")),
    "k zero": (lambda: layer(0), "k", ("at least 1", "got 0")),
    "k a bool": (lambda: layer(True), "k", ("got True",)),
    "k left open": (lambda: layer(None), "k", ("one weight per slot", "aggregation='sum'")),
    "stride zero": (lambda: layer(stride=0), "stride", ("at least 1", "got 0")),
    "stride of three axes": (lambda: layer(stride=(1, 1, 1)), "stride", ("2 (one per axis)", "(1, 1, 1)")),
    "padding negative": (lambda: layer(candidate_padding=-1), "candidate_padding", ("at least 0", "got -1")),
    "groups that do not divide": (lambda: layer(groups=3), "groups", ("divisor", "4 channels", "got 3")),
    "groups of a depthwise": (
        lambda: layer(groups=2, aggregation="depthwise"), "groups", ("1", "'depthwise'", "got 2")),
    "depthwise to other channels": (
        lambda: ConvNN2d(4, 6, aggregation="depthwise"), "out_channels", ("multiple of 4", "depthwise_separable")),
    "sum to other channels": (lambda: ConvNN2d(4, 6, aggregation="sum"), "out_channels", ("4 (a sum", "got 6")),
    "similarity misspelt": (lambda: layer(similarity="cosne"), "similarity", ("did you mean 'cosine'?",)),
    "weighting misspelt": (lambda: layer(weighting="softmx"), "weighting", ("did you mean 'softmax'?",)),
    "aggregation misspelt": (lambda: layer(aggregation="depth_wise"), "aggregation", ("did you mean 'depthwise'?",)),
    "padding mode misspelt": (lambda: layer(padding_mode="zero"), "padding_mode", ("did you mean 'zeros'?",)),
    "impl misspelt": (lambda: layer(impl="dens"), "impl", ("did you mean 'dense'?",)),
    "candidates without a number": (lambda: layer(candidates="window"), "candidates", ("convnn.Window(3)",)),
    "include_self a word": (lambda: layer(include_self="no"), "include_self", ("got 'no'",)),
    "projection a word": (lambda: layer(projection="qk"), "projection", ("got 'qk'",)),
    "unshuffle zero": (lambda: layer(unshuffle=0), "unshuffle", ("at least 1", "got 0")),
    "temperature zero": (lambda: layer(temperature=0.0), "temperature", ("above 0", "got 0.0")),
    "scale infinite": (lambda: layer(scale=float("inf")), "scale", ("finite", "inf")),
}  # fmt: skip

INPUT: dict[str, Misuse] = {
    "channels": (lambda: ConvNN2d(5, 4)(X), "input", ("5 channels", "ConvNN2d", "(2, 4, 6, 6)")),
    "rank": (lambda: layer()(X[0, 0]), "input", ("(batch, 4, height, width)", "(6, 6)")),
    "integers": (lambda: layer()(X.long()), "input", ("floating-point", "torch.int64")),
    "an array": (lambda: layer()(X.numpy()), "input", ("a tensor (batch, 4, height, width)", "ndarray")),
    "dtype": (lambda: layer()(X.double()), "input", ("torch.float32", "torch.float64", "autocast")),
    "device": (lambda: layer()(X.to("meta")), "input", ("device cpu", "meta")),
    "unshuffle not dividing": (lambda: layer(unshuffle=4)(X), "input", ("divisible by unshuffle = 4", "(6, 6)")),
    "k above the map": (lambda: layer(37)(X), "k", ("at most 36", "add padding")),
    "k above the candidates": (lambda: layer(candidates=Random(4))(X), "k", ("at most 4", "slot 0", "got 9")),
    "k above a clipped window": (lambda: layer(candidates=Window(3))(X), "k", ("at most 4", "borders", "'shift'")),
    "window of three axes": (lambda: layer(candidates=Window((3, 3, 3)))(X), "Window.size", ("2 (one per axis)",)),
    "grid margin": (lambda: layer(4, candidates=Grid(3, 3))(X), "Grid.margin", ("at most 1", "6 tokens", "got 3")),
    "candidates outside": (lambda: layer(2, candidates=torch.tensor([3, 36]))(X), "candidates", ("[0, 36)", "3 to 36")),
    "query_margin": (lambda: layer(query_margin=3)(X), "input", ("more than 6", "margin of 3")),
    "reflection beyond the map": (
        lambda: layer(candidate_padding=6, padding_mode="reflect")(X), "padding", ("reflect", "6")),
    "impl that cannot run it": (lambda: layer(impl="conv")(X), "impl", ("similarity is not spatial", "'auto'")),
    "neighbours of integers": (lambda: layer().neighbors(X.long()), "input", ("floating-point",)),
    "hybrid: channels": (lambda: hybrid()(X[:, :3]), "input", ("4 channels", "HybridConvNN2d", "(2, 3, 6, 6)")),
    "hybrid: channels of neighbours": (
        lambda: hybrid(groups=2).neighbors(X[:, :3]), "input", ("4 channels", "(2, 3, 6, 6)")),
    "hybrid: map below the kernel": (
        lambda: HybridConvNN2d(4, 4, 7, padding="valid", branch_ratio=0.0)(X), "input", ("more than 6", "6")),
    "attention: channels": (lambda: attention()(TOKENS[..., :7]), "input", ("8 channels", "(2, 10, 7)")),
    "attention: a map": (lambda: attention()(X), "input", ("(batch, tokens, 8)", "(2, 4, 6, 6)")),
    "attention: k": (lambda: attention(k=11)(TOKENS), "k", ("at most 10", "got 11")),
    "attention: attn_mask": (
        lambda: attention()(TOKENS, torch.zeros(10, 10)), "attn_mask", ("key_padding_mask", "(10, 10)")),
    "attention: causal": (lambda: attention()(TOKENS, is_causal=True), "attn_mask", ("is_causal=True",)),
    "attention: mask of numbers": (
        lambda: attention()(TOKENS, key_padding_mask=torch.zeros(2, 10)), "key_padding_mask", ("boolean", ".bool()")),
    "attention: mask a list": (
        lambda: attention()(TOKENS, key_padding_mask=[[False] * 10]), "key_padding_mask", ("boolean", "list")),
    "attention: mask of another batch": (
        lambda: attention()(TOKENS, key_padding_mask=mask(3, 10)), "key_padding_mask", ("(2, 10)", "(3, 10)")),
    "attention: mask that leaves too few": (
        lambda: attention()(TOKENS, key_padding_mask=torch.arange(10).expand(2, 10) > 1), "k", ("at most 2", "masks")),
    "multihead: an array": (lambda: multihead()(TOKENS.numpy(), TOKENS, TOKENS), "query", ("tensor", "ndarray")),
    "multihead: values": (
        lambda: multihead()(TOKENS, TOKENS, TOKENS[:, :9]), "value", ("10 tokens as in key", "got 9")),
    "multihead: attn_mask": (
        lambda: multihead()(TOKENS, TOKENS, TOKENS, attn_mask=mask(10, 10)), "attn_mask", ("key_padding_mask",)),
    "mixed: channels": (lambda: mixed()(TOKENS[..., :7]), "input", ("8 channels", "HybridAttention")),
    "mixed: mask of numbers": (
        lambda: mixed(partner="conv", branch_ratio=0.0)(TOKENS, key_padding_mask=torch.zeros(2, 10)),
        "key_padding_mask", ("boolean",)),
    "mixed: mask too short": (
        lambda: mixed(partner="conv", branch_ratio=0.0)(TOKENS, key_padding_mask=mask(2, 9)),
        "key_padding_mask", ("(2, 10)", "(2, 9)")),
}  # fmt: skip

OTHERS: dict[str, Misuse] = {
    "from_conv: even": (lambda: from_conv(nn.Conv2d(4, 4, 2)), "kernel_size", ("odd", "(2, 2)", "use an odd kernel")),
    "from_conv: even along one axis": (lambda: from_conv(nn.Conv2d(4, 4, (3, 4))), "kernel_size", ("odd", "(3, 4)")),
    "from_conv: transposed": (lambda: from_conv(nn.ConvTranspose2d(4, 4, 3)), "conv", ("nn.Conv2d", "ConvTranspose2d")),
    "from_conv: other axes": (lambda: from_conv(nn.Conv1d(4, 4, 3)), "conv", ("Conv1d", "use ConvNN1d")),
    "from_conv: nothing": (lambda: from_conv(None), "conv", ("nn.Conv2d", "NoneType")),
    "from_conv: lazy": (lambda: from_conv(nn.LazyConv2d(4, 3)), "conv", ("LazyConv2d",)),
    "from_conv: a map below the kernel": (
        lambda: from_conv(nn.Conv2d(4, 4, 7))(X), "input", ("more than 6", "margin of 3")),
    "from_conv: weight norm": (lambda: from_conv(weight_normed()), "conv", ("parametrisation",)),
    "hybrid: even kernel": (lambda: hybrid(kernel_size=2, padding=1), "kernel_size", ("padding='same'", "(2, 2)")),
    "hybrid: even kernel, stride": (lambda: hybrid(kernel_size=2, stride=2), "kernel_size", ("stride 1", "(2, 2)")),
    "hybrid: candidate_padding": (
        lambda: hybrid(padding=2, candidate_padding=0), "candidate_padding", ("at least 1", "got 0")),
    "hybrid: ratio": (lambda: hybrid(branch_ratio=1.5), "branch_ratio", ("[0, 1]", "got 1.5", "ConvNN alone")),
    "hybrid: ratio nan": (lambda: hybrid(branch_ratio=NAN), "branch_ratio", ("finite", "nan")),
    "hybrid: ratio a word": (lambda: hybrid(branch_ratio="half"), "branch_ratio", ("number", "'half'")),
    "hybrid: ratio cuts a group": (
        lambda: hybrid(groups=2, branch_ratio=0.25), "branch_ratio", ("groups", "0.25", "2/4")),
    "hybrid: groups": (lambda: hybrid(groups=3), "groups", ("divisor", "got 3")),
    "hybrid: padding misspelt": (lambda: hybrid(padding="smae"), "padding", ("'same' or 'valid'", "'smae'")),
    "hybrid: unshuffle alone": (lambda: hybrid(unshuffle=2), "unshuffle", ("equal to shuffle", "got 2")),
    "hybrid: query_margin": (lambda: hybrid(query_margin=0), "option", ("got 'query_margin'",)),
    "hybrid: no neighbours": (
        lambda: hybrid(branch_ratio=0.0).neighbors(X), "branch_ratio", ("keeps a ConvNN branch",)),
    "hybrid: k of no branch": (lambda: hybrid(branch_ratio=0.0, k=0), "k", ("at least 1", "got 0")),
    "attention: heads": (lambda: ConvNNAttention(10, 4), "num_heads", ("divisor of dim = 10", "got 4")),
    "attention: no heads": (lambda: ConvNNAttention(8, 0), "num_heads", ("at least 1", "got 0")),
    "attention: k left open": (lambda: attention(k=None), "k", ("one weight per slot", "aggregation='sum'")),
    "attention: no width": (lambda: attention(dim_out=0), "dim_out", ("at least 1", "got 0")),
    "attention: dropout of all": (lambda: attention(attn_drop=1.0), "attn_drop", ("[0, 1)", "got 1.0")),
    "attention: dropout nan": (lambda: attention(attn_drop=NAN), "attn_drop", ("nan",)),
    "attention: from a linear": (
        lambda: ConvNNAttention.from_attention(nn.Linear(3, 3)), "attention", ("nn.MultiheadAttention", "got Linear")),
    "attention: from other widths": (lambda: from_attention(kdim=4), "attention", ("embed_dim", "(4, 8)")),
    "attention: from bias_kv": (lambda: from_attention(add_bias_kv=True), "attention", ("no add_bias_kv",)),
    "attention: from zero_attn": (lambda: from_attention(add_zero_attn=True), "attention", ("add_zero_attn",)),
    "multihead: heads": (lambda: ConvNNMultiheadAttention(10, 4), "num_heads", ("embed_dim = 10", "got 4")),
    "multihead: dropout": (lambda: multihead(dropout=-0.1), "dropout", ("[0, 1)", "got -0.1")),
    "mixed: ratio": (lambda: mixed(branch_ratio=2), "branch_ratio", ("[0, 1]", "got 2")),
    "mixed: ratio cuts a head": (lambda: mixed(branch_ratio=0.4), "branch_ratio", ("2 heads", "3 and 5 channels")),
    "mixed: partner misspelt": (lambda: mixed(partner="attn"), "partner", ("'conv'", "did you mean 'attention'?")),
    "mixed: even kernel": (lambda: mixed(partner="conv", kernel_size=4), "kernel_size", ("odd", "got 4")),
    "mixed: no neighbours": (
        lambda: mixed(branch_ratio=0.0).neighbors(TOKENS), "branch_ratio", ("keeps a ConvNN branch",)),
}  # fmt: skip

CONVERT: dict[str, Misuse] = {
    "to misspelt": (lambda: convert(net(), "hybird"), "to", ("'convnn'", "did you mean 'hybrid'?")),
    "init misspelt": (lambda: convnn(init="from_orignal"), "init", ("did you mean 'from_original'?",)),
    "a list": (lambda: convert([nn.Conv2d(4, 4, 3)]), "model", ("nn.Module", "got list")),
    "a class": (lambda: convert(nn.Conv2d), "model", ("nn.Module", "got type")),
    "option misspelt": (lambda: convnn(similarty="cosine"), "option", ("'similarty'", "did you mean 'similarity'?")),
    "option that the layer decides": (lambda: convnn(stride=2), "option", ("'k'", "'stride'")),
    "option's value": (lambda: convnn(k=0), "k", ("at least 1", "got 0")),
    "ratio": (lambda: convert(net(), "hybrid", branch_ratio=1.2), "branch_ratio", ("[0, 1]", "got 1.2")),
    "nothing to convert": (
        lambda: convnn(nn.Sequential(nn.Linear(3, 3))), "model", ("of which there are: none", "no attention")),
    "no name fits": (lambda: convnn(pattern="layer*"), "pattern", ("0, 2", "layer*")),
    "no type fits": (lambda: convnn(types=nn.Conv3d), "types", ("0, 2", "Conv3d")),
    "no layer pleases": (lambda: convnn(where=lambda name, _: name == "5"), "where", ("0, 2",)),
    "types a name": (lambda: convnn(types="Conv2d"), "types", ("'Conv2d'",)),
    "where a name": (lambda: convnn(where="0"), "where", ("'0'",)),
    "pattern a number": (lambda: convnn(pattern=0), "pattern", ("got 0",)),
    "even kernel": (lambda: convnn(nn.Sequential(nn.Conv2d(4, 4, 4))), "kernel_size", ("odd", "(4, 4)")),
    "lazy layer": (lambda: convnn(nn.Sequential(nn.LazyConv2d(4, 3))), "conv", ("LazyConv2d",)),
    "forward hook": (lambda: convnn(hooked("register_forward_hook")), "conv", ("without hooks", "_forward_hooks")),
    "forward pre-hook": (lambda: convnn(hooked("register_forward_pre_hook")), "conv", ("without hooks",)),
    "backward hook": (lambda: convnn(hooked("register_full_backward_hook")), "conv", ("without hooks",)),
    "backward pre-hook": (lambda: convnn(hooked("register_full_backward_pre_hook")), "conv", ("without hooks",)),
    "parametrisation": (lambda: convnn(weight_normed()), "conv", ("without parametrisations", "weight norm")),
    "old weight norm": (
        lambda: convnn(nn.utils.weight_norm(nn.Conv2d(4, 4, 3)), inplace=True), "conv", ("without hooks",)),
    "slots of another number": (lambda: convnn(init="from_original", k=5), "init", ("(8, 4, 9)", "(8, 4, 5)", "k=9")),
    "no branch for the kernel": (
        lambda: convert(net(), branch_ratio=1.0, init="from_original"), "init", ("convolution branch", "=1.0")),
    "hybrid of multihead": (
        lambda: convert(nn.Sequential(nn.MultiheadAttention(8, 2))), "layer", ("timm's Attention", "to='convnn'")),
    "no report": (lambda: conversion_report(net()), "model", ("convert", "Sequential")),
}  # fmt: skip

FAMILIES = {"layer": LAYER, "input": INPUT, "others": OTHERS, "convert": CONVERT}
MISUSES = {f"{family}: {name}": misuse for family, misuses in FAMILIES.items() for name, misuse in misuses.items()}


@pytest.mark.parametrize("misuse", MISUSES)
def test_the_message_helps(misuse: str) -> None:
    call, argument, fragments = MISUSES[misuse]
    with pytest.raises(ConvNNError) as caught:
        call()
    message = str(caught.value)
    assert re.fullmatch(rf"{re.escape(argument)}: expected .+, got .+; .+", message, re.DOTALL), message
    assert not [fragment for fragment in fragments if fragment not in message], message


@pytest.mark.parametrize(
    "make",
    [attention, multihead, hybrid, mixed, partial(hybrid, branch_ratio=0.0), partial(mixed, branch_ratio=0.0)],
)
def test_an_option_that_does_not_exist_is_refused_with_the_closest(make: Callable[..., nn.Module]) -> None:
    with pytest.raises(ConvNNError, match=r"'similarty'.*did you mean 'similarity'"):
        make(similarty="cosine")


def test_an_option_is_checked_where_the_ratio_leaves_no_branch_for_it() -> None:
    with pytest.raises(ConvNNError, match="did you mean 'cosine'"):
        hybrid(branch_ratio=0.0, similarity="cosin")
    with pytest.raises(ConvNNError, match="did you mean 'cosine'"):
        mixed(branch_ratio=0.0, similarity="cosin")


def test_an_option_that_no_replaced_layer_has_is_not_ignored_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConversionWarning)
        with pytest.raises((ConvNNError, ConversionWarning), match="branch_ratio"):
            convnn(branch_ratio=0.25)


@pytest.mark.parametrize("state", [ConvNN2d(4, 8).state_dict(), nn.Conv2d(4, 4, 3).state_dict(), layer(8).state_dict()])
def test_weights_of_other_shapes_are_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer().load_state_dict(state)


def test_a_kernel_of_another_shape_with_as_many_taps_is_refused() -> None:
    spatial = layer(25, similarity="spatial", candidates=Window(5), candidate_padding=2)
    with pytest.raises((RuntimeError, ConvNNError), match="weight"):
        spatial.load_state_dict(nn.Conv2d(4, 4, (1, 25)).state_dict())
