"""A convolution's kernel, dilation, padding and weights, in terms of tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import invalid
from ..stages.geometry import whole_window
from ..types import Window
from .attachments import check_no_attachments
from .layer import aggregation_groups, check_dtype, collapse_repeated, per_axis

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def kernel_radius(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """Return the radius of an odd kernel, from its centre to the last tap, per axis.

    >>> kernel_radius((3, 7), (2, 1))
    (2, 3)
    """
    return tuple(d * (size // 2) for size, d in zip(kernel, dilation, strict=True))


def padding_and_margin(
    padding: tuple[int, ...], radius: tuple[int, ...], argument: object
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a ConvNN's padding and query margin beside a convolution, such that both have the same query grid.

    ``padding`` and ``radius`` are the convolution's; ``argument`` is ``candidate_padding``,
    None for the same padding.

    >>> padding_and_margin((1, 1), (1, 1), None), padding_and_margin((1, 1), (1, 1), 2)
    (((1, 1), (1, 1)), ((2, 2), (2, 2)))
    """
    added = padding if argument is None else per_axis("candidate_padding", argument, len(padding), at_least=0)
    margin = tuple(new + reach - old for new, reach, old in zip(added, radius, padding, strict=True))
    if min(margin) < 0:
        least = collapse_repeated(tuple(max(old - reach, 0) for old, reach in zip(padding, radius, strict=True)))
        expected = f"at least {least} (the kernel's centres reach that far outside the map)"
        raise invalid("candidate_padding", expected, argument, "raise it")
    return added, margin


def odd_kernel(argument: str, value: object, dims: int) -> tuple[int, ...]:
    """Return one odd size per axis; raises ConvNNError for an even one, which has no centre."""
    kernel = per_axis(argument, value, dims, at_least=1)
    if any(size % 2 == 0 for size in kernel):
        raise invalid(argument, "odd sizes (the query is the kernel's centre)", kernel, "use an odd kernel")
    return kernel


def resolve_padding(value: object, radius: tuple[int, ...], argument: str = "padding") -> tuple[int, ...]:
    """Return the padding per axis for nn.Conv's ``padding``: numbers, ``"same"`` or ``"valid"``."""
    if value == "same":
        return radius
    if value == "valid":
        return (0,) * len(radius)
    if isinstance(value, str):
        raise invalid(argument, "numbers, 'same' or 'valid'", repr(value), "choose one of these")
    return per_axis(argument, value, len(radius), at_least=0)


def candidate_padding(value: object, layer: Any) -> tuple[int, ...]:
    """Return a ConvNN's padding per axis; ``"same"`` is the radius of the odd window that its k neighbours fill."""
    if value != "same":
        return resolve_padding(value, (0,) * layer.dims, "candidate_padding")
    if set(layer.stride) != {1}:
        raise invalid("candidate_padding", "numbers or 'valid' with a stride", "'same'", "give numbers")
    candidates = layer.candidates if isinstance(layer.candidates, Window) else "all"
    window = whole_window(candidates, layer.k or 0, layer.dims) or whole_window("all", layer.k or 0, layer.dims)
    if window is None:
        expected = "numbers, 'valid', or 'same' where k neighbours fill an odd window (e.g. 9 in two axes)"
        raise invalid("candidate_padding", expected, f"'same' with k={layer.k}", "give numbers")
    return kernel_radius(*window)


def undilated(value: object, dims: int) -> tuple[int, ...]:
    """Return a dilation of one per axis; raises ConvNNError for another: a search has no kernel to dilate."""
    dilation = per_axis("dilation", value, dims, at_least=1)
    if set(dilation) != {1}:
        fix = f"use candidates=Window(size, dilation={collapse_repeated(dilation)})"
        raise invalid("dilation", "1 (neighbours are searched, there is no kernel to dilate)", value, fix)
    return dilation


def is_plain_conv(module: nn.Module, conv_type: type[Conv]) -> bool:
    """Return True if a module is a convolution that runs ``conv_type``'s own forward (a subclass may change it)."""
    if not isinstance(module, conv_type):
        return False
    kind = type(module)
    return kind.forward is conv_type.forward and kind._conv_forward is conv_type._conv_forward


def conv_geometry(conv: nn.Module, conv_type: type[Conv]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return a convolution's odd kernel, dilation and padding per axis; raises ConvNNError if it has no such form."""
    if not isinstance(conv, conv_type):
        fix = "use ConvNN1d, ConvNN2d or ConvNN3d for a convolution of 1, 2 or 3 axes"
        raise invalid("conv", f"an nn.{conv_type.__name__}", type(conv).__name__, fix)
    check_no_attachments("conv", conv)
    if not is_plain_conv(conv, conv_type):
        expected = f"nn.{conv_type.__name__} itself, not a subclass with its own forward"
        raise invalid("conv", expected, type(conv).__name__, "replace it by a plain convolution first")
    if 0 in (conv.in_channels, conv.out_channels):
        got = f"{conv.in_channels} -> {conv.out_channels}"
        raise invalid("conv", "at least one input and one output channel", got, "leave such a layer out")
    check_dtype("conv", conv.weight.dtype)
    dims = len(conv.kernel_size)
    kernel = odd_kernel("kernel_size", conv.kernel_size, dims)
    dilation = per_axis("dilation", conv.dilation, dims, at_least=1)
    return kernel, dilation, resolve_padding(conv.padding, kernel_radius(kernel, dilation))


def spatial_options(conv: Any, conv_type: type[Conv]) -> dict[str, Any]:
    """Return the arguments of the spatial ConvNN that is equal to a convolution; raises as ``conv_geometry``."""
    kernel, dilation, padding = conv_geometry(conv, conv_type)
    return {
        "in_channels": conv.in_channels, "out_channels": conv.out_channels, "k": math.prod(kernel),
        "stride": conv.stride, "candidate_padding": padding, "groups": conv.groups, "bias": conv.bias is not None,
        "similarity": "spatial", "candidates": Window(kernel, dilation), "padding_mode": conv.padding_mode,
        "query_margin": kernel_radius(kernel, dilation), "device": conv.weight.device, "dtype": conv.weight.dtype,
    }  # fmt: skip


def make_parameters(layer: Any, factory: dict[str, Any]) -> None:
    """Make a ConvNN's slot weights, its bias, and the linear layers of its options."""
    token = layer.in_channels * layer.unshuffle**layer.dims
    value = token + layer.dims * layer.value_coordinates
    out = layer.out_channels * layer.shuffle**layer.dims
    groups = layer.slot_groups = aggregation_groups(layer.aggregation, layer.groups, value=value, out=out)
    separable = layer.aggregation == "depthwise_separable"
    for name in ("query_projection", "key_projection", "value_projection"):
        setattr(layer, name, nn.Linear(token, token, bias=False, **factory) if layer.projection else None)
    layer.pointwise = nn.Linear(value, out, bias=layer.has_bias, **factory) if separable else None
    layer.weight = None
    if layer.aggregation != "sum":
        shape = (value if separable else out, value // groups, layer.k or 1)
        layer.weight = nn.Parameter(torch.empty(shape, **factory))
    with_bias = layer.has_bias and not separable
    layer.register_parameter("bias", nn.Parameter(torch.empty(out, **factory)) if with_bias else None)


def as_slots(weight: object, layer: Any) -> object:
    """Flatten a convolution's weight ``(C_out, C_in/groups, *kernel)`` where the layer's slots are that very kernel's.

    Anything else is returned as it is.
    """
    in_raster_order = layer.similarity == "spatial" and not layer.include_self and layer.k is not None
    window = whole_window(layer.candidates, layer.k, layer.dims) if in_raster_order else None
    if isinstance(weight, Tensor) and window is not None and tuple(weight.shape[2:]) == window[0]:
        return weight.flatten(2)
    return weight
