"""What ``--layer`` means: a name for each stop between convolution and attention, and the conversion that goes there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from ..convert import convert
from ..errors import invalid, unknown_name
from ..types import Blend

CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Swap:
    """One stop: what is swapped (``of``), into what (``to``; None changes nothing), and with which options."""

    to: Literal["convnn", "hybrid"] | None
    of: Literal["convolutions", "attention", "both"]
    text: str
    takes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


LAYERS: dict[str, Swap] = {
    "conv": Swap(None, "both", "the convolutions as they are"),
    "attention": Swap(None, "both", "the attention as it is"),
    "spatial": Swap(
        "convnn",
        "convolutions",
        "ConvNN with spatial neighbours and the convolution's weights: the same function",
        options={"similarity": "spatial", "init": "from_original"},
    ),
    "blend": Swap(
        "convnn",
        "convolutions",
        "ConvNN whose neighbours are near and alike, half and half",
        takes=("k",),
        options={"similarity": Blend(0.5)},
    ),
    "convnn": Swap("convnn", "both", "ConvNN: neighbours by features alone", takes=("k",)),
    "hybrid": Swap("hybrid", "both", "both branches, mixed by a 1x1", takes=("k", "branch_ratio")),
    "knn": Swap(
        "convnn",
        "attention",
        "attention to the k best tokens, with the attention's weights",
        takes=("k",),
        options={"aggregation": "sum", "init": "from_original"},
    ),
}


def swap_layers(model: nn.Module, layer: str, *, k: int = 9, branch_ratio: float = 0.5) -> nn.Module:
    """Return a copy of the model with its convolutions or its attention swapped for ``layer``, a name of ``LAYERS``.

    Raises ConvNNError for an unknown name, and when the model has nothing that could be swapped.

    >>> swap_layers(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), "hybrid", k=5)[0].convnn.k
    5
    """
    if layer not in LAYERS:
        raise unknown_name("layer", layer, LAYERS)
    swap = LAYERS[layer]
    if swap.to is None:
        return model
    given = {"k": k, "branch_ratio": branch_ratio}
    options = {**{name: given[name] for name in swap.takes}, **swap.options}
    before = {type(module) for module in model.modules()}
    types = {"convolutions": CONVOLUTIONS, "attention": attention_types(), "both": None}[swap.of]
    converted = convert(model, swap.to, types=types, **options)
    if {type(module) for module in converted.modules()} == before:
        what = "convolutions (kernel above 1, stride 1) or attention" if swap.of == "both" else swap.of
        raise invalid("layer", f"one that fits a {type(model).__name__} (it has no {what} to swap)", repr(layer), _other(swap))
    return converted


def attention_types() -> tuple[type[nn.Module], ...]:
    """Return the attention layers that can be swapped: PyTorch's, and timm's where timm is installed."""
    try:
        from timm.layers import Attention
    except ImportError:
        return (nn.MultiheadAttention,)
    return (nn.MultiheadAttention, Attention)


def _other(swap: Swap) -> str:
    names = [name for name, other in LAYERS.items() if other.to is not None and other.of not in (swap.of, "both")]
    return f"use one of {', '.join(map(repr, names))}, or another model" if names else "use another model"
