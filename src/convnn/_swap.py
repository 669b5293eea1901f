"""The ConvNN or hybrid replacement of one layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ._options import names_of
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
from .nn.attachments import check_no_attachments
from .nn.from_attention import is_timm_attention
from .nn.heads import HeadsAttention, has_reset
from .nn.kernels import Conv, conv_geometry, kernel_radius, padding_and_margin
from .nn.layer import per_axis
from .nn.options import ConvNNOptions, HeadsOptions
from .types import Window

_CONVNN = {nn.Conv1d: ConvNN1d, nn.Conv2d: ConvNN2d, nn.Conv3d: ConvNN3d}
_HYBRID = {nn.Conv1d: HybridConvNN1d, nn.Conv2d: HybridConvNN2d, nn.Conv3d: HybridConvNN3d}
_OURS = (*_CONVNN.values(), *_HYBRID.values(), HeadsAttention, HybridAttention)


# The options of each replacement, without those that the replaced layer decides.
_CONV = (names_of(ConvNNOptions) | {"bias", "convnn_bias", "candidate_padding"}) - {"query_margin"}
_CONV_HYBRID = _CONV | {"branch_ratio", "kernel_size"}
_ATTENTION = names_of(HeadsOptions)
_ATTENTION_HYBRID = _ATTENTION | {"branch_ratio", "partner", "num_heads", "kernel_size"}

OPTIONS = _CONV | _CONV_HYBRID | _ATTENTION | _ATTENTION_HYBRID
"""Every option that some replacement takes."""


def options_for(layer: nn.Module, to: str) -> frozenset[str]:
    """Return the names of the options that the replacement of ``layer`` takes."""
    if conv_kind(layer) is not None:
        return _CONV if to == "convnn" else _CONV_HYBRID
    return _ATTENTION if to == "convnn" else _ATTENTION_HYBRID


def is_convnn_layer(layer: nn.Module) -> bool:
    """Return True if a layer is one of convnn's."""
    return isinstance(layer, _OURS)


def conv_kind(layer: nn.Module) -> type[Conv] | None:
    """Return the convolution class of a layer, or None."""
    return next((kind for kind in _CONVNN if isinstance(layer, kind)), None)  # type: ignore[return-value]


def attention_kind(layer: nn.Module) -> bool:
    """Return True if a layer is an attention module: one that can be replaced, or one by its name alone."""
    return isinstance(layer, nn.MultiheadAttention) or type(layer).__name__.endswith("Attention")


def why_kept(layer: nn.Module) -> str:
    """Return the reason why a layer is not replaced by default, or "" if it is."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if all(size == 1 for size in layer.kernel_size):
            return "a 1x1 convolution has no neighbours"
        if any(step != 1 for step in layer.stride):
            return "it has a stride; choose it with types, pattern or where to replace it too"
    return ""


def replacement(layer: nn.Module, to: str, *, init: str, options: dict[str, Any]) -> nn.Module:
    """Make the layer that replaces ``layer``; raises ConvNNError, with the reason, where there is none."""
    allowed = options_for(layer, to)
    options = {name: value for name, value in options.items() if name in allowed}
    kind = conv_kind(layer)
    if kind is not None:
        return _replace_conv(layer, kind, to, init, options).train(layer.training)
    if attention_kind(layer):
        if to == "convnn":  # its parts are copies, each in its original's mode
            return _convnn_attention(layer, init, options)
        return _hybrid_attention(layer, init, options).train(layer.training)
    fix = "choose convolutions and attention layers"
    raise invalid("layer", "a convolution or an attention layer", type(layer).__name__, fix)


def _replace_conv(layer: Any, kind: type[Conv], to: str, init: str, options: dict[str, Any]) -> nn.Module:
    kernel, dilation, padding = conv_geometry(layer, kind)
    if options.get("similarity") == "spatial" and "k" not in options and "candidates" not in options:
        options = {**options, "k": math.prod(kernel), "candidates": Window(kernel, dilation)}
    shared = {
        "stride": layer.stride, "groups": layer.groups, "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode, "device": layer.weight.device, "dtype": layer.weight.dtype,
    }  # fmt: skip
    channels = (layer.in_channels, layer.out_channels)
    if to == "convnn":
        radius = kernel_radius(kernel, dilation)
        added, margin = padding_and_margin(padding, radius, options.get("candidate_padding"))
        bias = options.get("bias", shared["bias"]) if options.get("convnn_bias") is None else options["convnn_bias"]
        kept = {name: value for name, value in options.items() if name != "convnn_bias"}
        kept |= {"bias": bias, "candidate_padding": added, "query_margin": margin}
        new = _CONVNN[kind](*channels, **{**shared, **kept})
        if init == "from_original":
            _take_kernel(new, layer)
        return new
    around: tuple[int, ...] | str = padding
    if options.get("kernel_size") is not None:
        kernel, around = _resized(kernel, dilation, padding, options["kernel_size"])
    kept = {name: value for name, value in options.items() if name != "kernel_size"}
    hybrid = _HYBRID[kind](*channels, kernel, padding=around, dilation=dilation, **{**shared, **kept})
    if init == "from_original":
        _take_slice(hybrid, layer)
    return hybrid


def _resized(
    kernel: tuple[int, ...], dilation: tuple[int, ...], padding: tuple[int, ...], size: object
) -> tuple[tuple[int, ...], tuple[int, ...] | str]:
    """Return a kernel of another size, and the padding that keeps the size of its output."""
    new = per_axis("kernel_size", size, len(kernel), at_least=1)
    before, after = kernel_radius(kernel, dilation), kernel_radius(new, dilation)
    if padding == before:
        return new, "same"
    moved = tuple(old + b - a for old, a, b in zip(padding, before, after, strict=True))
    if any(number % 2 == 0 for number in new) or min(moved) < 0:
        expected = f"an odd size that can keep the output as large as with kernel {kernel} and padding {padding}"
        raise invalid("kernel_size", expected, size, "choose a larger, odd one")
    return new, moved


def _take_kernel(new: Any, layer: Any) -> None:
    """Copy a kernel slot by slot, in raster order."""
    slots = layer.weight.flatten(2)
    if new.weight is None or new.weight.shape != slots.shape:
        got = None if new.weight is None else tuple(new.weight.shape)
        fix = f"use k={slots.shape[2]} with aggregation='standard', or init='random'"
        raise invalid("init", f"slot weights of shape {tuple(slots.shape)}, as the kernel's", got, fix)
    with torch.no_grad():
        _copy(new.weight, slots, layer.weight)
        _copy(new.bias, layer.bias, layer.bias)


def _copy(target: nn.Parameter | None, values: Tensor | None, source: nn.Parameter | None) -> None:
    """Copy values and requires_grad of their source into a parameter; without a source, zeros."""
    if target is None:
        return
    if values is None or source is None:
        target.zero_()
    else:
        target.copy_(values)
        target.requires_grad_(source.requires_grad)


def _take_slice(hybrid: Any, layer: Any) -> None:
    """Copy the kernels of its channels into the convolution branch, and set the mix to the identity."""
    if hybrid.conv is None:
        ratio = f"branch_ratio={hybrid.branch_ratio}"
        raise invalid("init", "a hybrid with a convolution branch", ratio, "use init='random'")
    share = layer.out_channels - hybrid.conv.out_channels
    if hybrid.conv.weight.shape[2:] != layer.weight.shape[2:]:
        got, kernel = tuple(hybrid.conv.weight.shape[2:]), tuple(layer.weight.shape[2:])
        raise invalid("init", f"a branch with the original's kernel {kernel}", got, "leave kernel_size out")
    with torch.no_grad():
        _copy(hybrid.conv.weight, layer.weight[share:], layer.weight)
        _copy(hybrid.conv.bias, None if layer.bias is None else layer.bias[share:], layer.bias)
        nn.init.dirac_(hybrid.mix.weight)
        nn.init.zeros_(hybrid.mix.bias)


def _convnn_attention(layer: nn.Module, init: str, options: dict[str, Any]) -> nn.Module:
    options = {"k": 9, "aggregation": "depthwise", **options}
    kind = ConvNNMultiheadAttention if isinstance(layer, nn.MultiheadAttention) else ConvNNAttention
    new: Any = kind.from_attention(layer, **options)  # type: ignore[arg-type]
    if init == "random":
        new.reset_parameters()
        for part in new.modules():
            if has_reset(part):  # new weights train even if the old ones were frozen
                for parameter in part.parameters(recurse=False):
                    parameter.requires_grad_(True)
    replaced: nn.Module = new
    return replaced


def _hybrid_attention(layer: nn.Module, init: str, options: dict[str, Any]) -> nn.Module:
    if not is_timm_attention(layer):
        fix = "use to='convnn', or replace it by hand"
        raise invalid("layer", "timm's Attention (the hybrid attention splits its channels)", type(layer).__name__, fix)
    if init == "from_original":
        expected = "'random' for a hybrid attention (it splits the channels: no slice of it is the original's)"
        raise invalid("init", expected, init, "use init='random', or to='convnn'")
    check_no_attachments("layer", layer)
    source: Any = layer
    extras = [name for name in ("q_norm", "k_norm", "norm") if not isinstance(getattr(source, name), nn.Identity)]
    extras += ["gate"] if getattr(source, "gate", None) is not None else []
    widths = (source.qkv.in_features, source.attn_dim, source.proj.out_features)
    if extras or len(set(widths)) > 1:
        got = f"widths {widths}" + (f" and {', '.join(extras)}" if extras else "")
        raise invalid("layer", "an Attention of one width, without norms and gate", got, "use to='convnn'")
    options = {"num_heads": source.num_heads, **options}
    return HybridAttention(
        source.qkv.in_features, qkv_bias=source.qkv.bias is not None,
        proj_bias=source.proj.bias is not None, attn_drop=source.attn_drop.p, proj_drop=source.proj_drop.p,
        device=source.qkv.weight.device, dtype=source.qkv.weight.dtype, **options,
    )  # fmt: skip
