"""One layer in, its ConvNN or hybrid replacement out."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from .errors import invalid
from .nn import (
    ConvNN1d,
    ConvNN2d,
    ConvNN3d,
    ConvNNAttention,
    ConvNNMultiheadAttention,
    HybridAttention,
    HybridConvNN1d,
    HybridConvNN2d,
    HybridConvNN3d,
)
from .nn.from_attention import is_timm_attention
from .nn.heads import HeadsAttention
from .nn.kernels import Conv, conv_geometry, kernel_radius
from .types import Window

_CONVNN = {nn.Conv1d: ConvNN1d, nn.Conv2d: ConvNN2d, nn.Conv3d: ConvNN3d}
_HYBRID = {nn.Conv1d: HybridConvNN1d, nn.Conv2d: HybridConvNN2d, nn.Conv3d: HybridConvNN3d}
_OURS = (*_CONVNN.values(), *_HYBRID.values(), HeadsAttention, HybridAttention)


def _keywords(*kinds: type[nn.Module]) -> frozenset[str]:
    """The keyword-only options of layers (and k), less those that the replaced layer decides."""
    names = {p.name for kind in kinds for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY}
    return frozenset(names | {"k"}) - {"device", "dtype"}


_FIXED = {"stride", "padding", "dilation", "groups", "padding_mode", "query_margin", "impl"}
_CONV_OPTIONS = _keywords(ConvNN2d) - _FIXED | {"impl"}
_HYBRID_OPTIONS = _keywords(HybridConvNN2d) - _FIXED | _CONV_OPTIONS
_HEADS = frozenset(inspect.signature(HeadsAttention).parameters) - {"num_heads", "head_dim", "device", "dtype"}
_ATTENTION_OPTIONS = _HEADS
_HYBRID_ATTENTION_OPTIONS = _HEADS | {"branch_ratio", "partner"}
OPTIONS = _HYBRID_OPTIONS | _HYBRID_ATTENTION_OPTIONS


def is_ours(layer: nn.Module) -> bool:
    """Whether a layer is one of convnn's."""
    return isinstance(layer, _OURS)


def conv_kind(layer: nn.Module) -> type[Conv] | None:
    """Return the convolution class of a layer, or None."""
    return next((kind for kind in _CONVNN if isinstance(layer, kind)), None)  # type: ignore[return-value]


def attention_kind(layer: nn.Module) -> bool:
    """Whether a layer is an attention module: one that can be replaced, or one named as such that cannot."""
    return isinstance(layer, nn.MultiheadAttention) or type(layer).__name__.endswith("Attention")


def replacement(layer: nn.Module, to: str, *, init: str, options: dict[str, Any]) -> nn.Module:
    """Make the layer that replaces ``layer``; raises ConvNNError, with the reason, where there is none."""
    kind = conv_kind(layer)
    if kind is None:
        make = _convnn_attention if to == "convnn" else _hybrid_attention
        allowed = _ATTENTION_OPTIONS if to == "convnn" else _HYBRID_ATTENTION_OPTIONS
        new = make(layer, init, {name: value for name, value in options.items() if name in allowed})
    else:
        allowed = _CONV_OPTIONS if to == "convnn" else _HYBRID_OPTIONS
        new = _replace_conv(layer, kind, to, init, {n: value for n, value in options.items() if n in allowed})
    return new.train(layer.training)


def _replace_conv(layer: Any, kind: type[Conv], to: str, init: str, options: dict[str, Any]) -> nn.Module:
    kernel, dilation, padding = conv_geometry(layer, kind)
    if options.get("similarity") == "spatial" and "k" not in options and "candidates" not in options:
        options = {**options, "k": layer.weight[0, 0].numel(), "candidates": Window(kernel, dilation)}
    shared = {
        "stride": layer.stride, "padding": padding, "groups": layer.groups, "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode, "device": layer.weight.device, "dtype": layer.weight.dtype,
    }  # fmt: skip
    channels = (layer.in_channels, layer.out_channels)
    if to == "convnn":
        margin = kernel_radius(kernel, dilation)
        new = _CONVNN[kind](*channels, **{**shared, "query_margin": margin, **options})
        if init == "from_original":
            _take_kernel(new, layer)
        return new
    hybrid = _HYBRID[kind](*channels, kernel, dilation=dilation, **{**shared, **options})
    if init == "from_original":
        _take_slice(hybrid, layer)
    return hybrid


def _take_kernel(new: Any, layer: Any) -> None:
    """Copy a kernel slot by slot, in raster order."""
    slots = layer.weight.flatten(2)
    if new.weight is None or new.weight.shape != slots.shape:
        got = None if new.weight is None else tuple(new.weight.shape)
        fix = f"use k={slots.shape[2]} with aggregation='standard', or init='random'"
        raise invalid("init", f"slot weights of shape {tuple(slots.shape)}, as the kernel's", got, fix)
    with torch.no_grad():
        new.weight.copy_(slots)
        if new.bias is not None and layer.bias is not None:
            new.bias.copy_(layer.bias)


def _take_slice(hybrid: Any, layer: Any) -> None:
    """Give the convolution branch the kernels of its channels, and start the mix as the identity."""
    if hybrid.conv is None:
        raise invalid(
            "init", "a hybrid with a convolution branch", f"branch_ratio={hybrid.branch_ratio}", "use init='random'"
        )
    share = layer.out_channels - hybrid.conv.out_channels
    with torch.no_grad():
        hybrid.conv.weight.copy_(layer.weight[share:])
        if layer.bias is not None and hybrid.conv.bias is not None:
            hybrid.conv.bias.copy_(layer.bias[share:])
        nn.init.dirac_(hybrid.mix.weight)
        nn.init.zeros_(hybrid.mix.bias)


def _convnn_attention(layer: nn.Module, init: str, options: dict[str, Any]) -> nn.Module:
    options = {"k": 9, "aggregation": "depthwise", **options}
    kind = ConvNNMultiheadAttention if isinstance(layer, nn.MultiheadAttention) else ConvNNAttention
    new = kind.from_attention(layer, **options)  # type: ignore[arg-type]
    if init == "random":
        for part in new.modules():
            if isinstance(part, nn.Linear):
                part.reset_parameters()
        if isinstance(new, ConvNNMultiheadAttention):
            nn.init.xavier_uniform_(new.in_proj_weight)
    return new


def _hybrid_attention(layer: nn.Module, init: str, options: dict[str, Any]) -> nn.Module:
    if not is_timm_attention(layer):
        fix = "use to='convnn', or replace it by hand"
        raise invalid("layer", "timm's Attention (the hybrid attention splits its channels)", type(layer).__name__, fix)
    if init == "from_original":
        expected = "'random' for a hybrid attention (it splits the channels: no slice of it is the original's)"
        raise invalid("init", expected, init, "use init='random', or to='convnn'")
    source: Any = layer
    if source.attn_dim != source.qkv.in_features or not isinstance(source.q_norm, nn.Identity):
        raise invalid("layer", "an Attention of the standard width, without norms", "another", "use to='convnn'")
    return HybridAttention(
        source.qkv.in_features, source.num_heads, qkv_bias=source.qkv.bias is not None,
        proj_bias=source.proj.bias is not None, attn_drop=source.attn_drop.p, proj_drop=source.proj_drop.p,
        device=source.qkv.weight.device, dtype=source.qkv.weight.dtype, **options,
    )  # fmt: skip
