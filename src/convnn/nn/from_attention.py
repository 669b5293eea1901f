"""Copies of the weights of attention modules in ConvNN layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import invalid
from .attachments import check_no_attachments
from .layer import check_dtype


def is_timm_attention(module: nn.Module) -> bool:
    """Return True if a module is timm's ``Attention`` itself, without importing timm."""
    kind = type(module)
    return kind.__name__ == "Attention" and kind.__module__ in (
        "timm.layers.attention",
        "timm.models.vision_transformer",
    )


def from_timm(
    kind: Callable[..., nn.Module], attention: nn.Module, k: int | None, *, options: dict[str, Any]
) -> nn.Module:
    """Copy timm's ``Attention`` with its norms, gate and dropouts."""
    if not is_timm_attention(attention):
        fix = "other attention modules compute another function; copy their qkv and proj weights by hand"
        raise invalid("attention", "timm's Attention or an nn.MultiheadAttention", type(attention).__name__, fix)
    check_no_attachments("attention", attention)
    source: Any = attention
    check_dtype("attention", source.qkv.weight.dtype)
    layer: Any = kind(
        source.qkv.in_features, source.num_heads, k=k, attn_head_dim=source.head_dim, dim_out=source.proj.out_features,
        qkv_bias=source.qkv.bias is not None, proj_bias=source.proj.bias is not None,
        qk_norm=not isinstance(source.q_norm, nn.Identity), attn_drop=source.attn_drop.p, proj_drop=source.proj_drop.p,
        device=source.qkv.weight.device, dtype=source.qkv.weight.dtype,
        **{"scale": source.scale if options.get("similarity", "dot") == "dot" else None, **options},
    )  # fmt: skip
    new: nn.Module = layer.train(attention.training)
    for name in ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"):
        part = getattr(source, name, None)
        if part is not None:  # each part keeps its mode: norms may be in eval mode while the rest trains
            setattr(layer, name, copy.deepcopy(part))
    return new


def from_multihead(
    kind: Callable[..., nn.Module], attention: nn.MultiheadAttention, k: int | None, *, options: dict[str, Any]
) -> nn.Module:
    """Copy an ``nn.MultiheadAttention`` used as self-attention."""
    check_multihead(attention)
    layer = kind(
        attention.embed_dim, attention.num_heads, k=k, attn_drop=attention.dropout,
        qkv_bias=attention.in_proj_bias is not None, proj_bias=attention.out_proj.bias is not None,
        device=attention.in_proj_weight.device, dtype=attention.in_proj_weight.dtype, **options,
    )  # fmt: skip
    copy_parameters(layer, {
        "qkv.weight": attention.in_proj_weight, "qkv.bias": attention.in_proj_bias,
        "proj.weight": attention.out_proj.weight, "proj.bias": attention.out_proj.bias,
    })  # fmt: skip
    return layer.train(attention.training)


def copy_parameters(layer: nn.Module, sources: Mapping[str, Tensor | None]) -> None:
    """Copy parameters into a layer by name, with their dtype and requires_grad; without a source, zeros."""
    for name, source in sources.items():
        owner, _, leaf = name.rpartition(".")
        module = layer.get_submodule(owner)
        if source is not None:
            values = source.detach().clone(memory_format=torch.contiguous_format)
            setattr(module, leaf, nn.Parameter(values, requires_grad=source.requires_grad))
        elif getattr(module, leaf) is not None:
            nn.init.zeros_(getattr(module, leaf))


def check_multihead(attention: object) -> None:
    """Raise ConvNNError unless a module is an ``nn.MultiheadAttention`` of one width, without extra keys."""
    if not isinstance(attention, nn.MultiheadAttention):
        raise invalid("attention", "an nn.MultiheadAttention", type(attention).__name__, "pass one")
    check_no_attachments("attention", attention)
    if type(attention).forward is not nn.MultiheadAttention.forward:
        fix = "replace it by a plain one first"
        expected = "nn.MultiheadAttention itself, not a subclass with its own forward"
        raise invalid("attention", expected, type(attention).__name__, fix)
    if not attention._qkv_same_embed_dim:
        widths, fix = (attention.kdim, attention.vdim), "project keys and values first"
        raise invalid("attention", "kdim = vdim = embed_dim", widths, fix)
    check_dtype("attention", attention.in_proj_weight.dtype)
    if attention.bias_k is not None or attention.add_zero_attn:
        fix = "append such keys to the input"
        raise invalid("attention", "no add_bias_kv and no add_zero_attn", "one that has them", fix)
