"""What ``layer`` means: a name for each stop between convolution and attention, and the conversion that goes there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from ..convert import convert
from ..errors import invalid, unknown_name
from ..types import Blend, Candidates, Grid, Random, Window

_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
        takes=("k", "candidates"),
        options={"similarity": Blend(0.5)},
    ),
    "convnn": Swap("convnn", "both", "ConvNN: neighbours by features alone", takes=("k", "candidates")),
    "hybrid": Swap("hybrid", "both", "both branches, mixed by a 1x1", takes=("k", "branch_ratio", "candidates")),
    "knn": Swap(
        "convnn",
        "attention",
        "attention to the k best tokens, with the attention's weights",
        takes=("k", "candidates"),
        options={"aggregation": "sum", "init": "from_original"},
    ),
}


INITS = ("default", "random", "from_original")


def parse_candidates(text: str) -> Candidates:
    """Read candidates from words: ``all``, ``random:32``, ``grid:5`` or ``window:7``; raises ConvNNError for others.

    >>> parse_candidates("random:32")
    Random(r=32, generator=None)
    """
    kinds: dict[str, type[Random] | type[Grid] | type[Window]] = {"random": Random, "grid": Grid, "window": Window}
    name, _, number = text.partition(":")
    if text == "all":
        return "all"
    if name not in kinds:
        raise unknown_name("candidates", name, ("all", *kinds))
    if not number.isdecimal():
        fix = f"say how many, e.g. {name}:{5 if name != 'random' else 32}"
        raise invalid("candidates", f"{name}:NUMBER", repr(text), fix)
    return kinds[name](int(number))


def swap_layers(
    model: nn.Module,
    layer: str,
    *,
    k: int = 9,
    branch_ratio: float = 0.5,
    candidates: Candidates = "all",
    init: str = "default",
) -> nn.Module:
    """Return a copy of the model with its convolutions or its attention swapped for ``layer``, a name of ``LAYERS``.

    Swapped are attention, and convolutions with a kernel above 1 and stride 1. ``init`` is that of ``convnn.convert``;
    ``"default"`` starts from the original's weights where the layer is named for what it recovers (spatial, knn), and
    from random ones elsewhere. Raises ConvNNError for an unknown name, and when the model has nothing that could be
    swapped.

    >>> swap_layers(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), "hybrid", k=5)[0].convnn.k
    5
    """
    if layer not in LAYERS:
        raise unknown_name("layer", layer, LAYERS)
    if init not in INITS:
        raise unknown_name("init", init, INITS)
    swap = LAYERS[layer]
    if swap.to is None:
        return model
    kinds = {
        "convolutions": _CONVOLUTIONS,
        "attention": attention_types(),
        "both": (*_CONVOLUTIONS, *attention_types()),
    }
    chosen = kinds[swap.of]
    if not any(_swappable(module, chosen) for module in model.modules()):
        what = "convolutions of kernel > 1 and stride 1" if swap.of == "convolutions" else "attention"
        got = f"{layer!r}, but a {type(model).__name__} has no {'layer' if swap.of == 'both' else what} to swap"
        raise invalid("layer", "one that fits the model", got, _other(swap))
    given: dict[str, Any] = {"k": k, "branch_ratio": branch_ratio, "candidates": candidates}
    options = {**{name: given[name] for name in swap.takes}, **swap.options}
    if init != "default":
        options["init"] = init
    return convert(model, swap.to, where=lambda _, module: _swappable(module, chosen), **options)


def attention_types() -> tuple[type[nn.Module], ...]:
    """Return the attention layers that can be swapped: PyTorch's, and timm's where timm is installed."""
    try:
        from timm.layers import Attention
    except ImportError:
        return (nn.MultiheadAttention,)
    return (nn.MultiheadAttention, Attention)


def _swappable(module: nn.Module, chosen: tuple[type[nn.Module], ...]) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return isinstance(module, chosen) and max(module.kernel_size) > 1 and max(module.stride) == 1
    return isinstance(module, chosen)


def _other(swap: Swap) -> str:
    if swap.of == "both":
        return "use another model"
    names = [name for name, other in LAYERS.items() if other.to is not None and other.of not in (swap.of, "both")]
    return f"use one of {', '.join(map(repr, names))}, or another model"
