"""The ``layer=`` presets of ``create_model``, from convolution to attention, and the conversion that each performs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import nn

from .. import _checks as checks
from .._convert import convert
from .._swap import why_kept
from ..errors import invalid
from ..types import Blend, Candidates, Similarity
from .specs import parse_candidates, parse_similarity

_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Preset:
    """A preset: the layers to replace (``of``), their replacement (``to``; None: unchanged), and its options."""

    to: Literal["convnn", "hybrid"] | None
    of: Literal["convolutions", "attention", "both"]
    text: str
    takes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


LAYERS: dict[str, Preset] = {
    "conv": Preset(None, "both", "the convolutions as they are"),
    "attention": Preset(None, "both", "the attention as it is"),
    "spatial": Preset(
        "convnn",
        "convolutions",
        "ConvNN with spatial neighbours and the convolution's weights: the same function",
        options={"similarity": "spatial", "init": "from_original"},
    ),
    "blend": Preset(
        "convnn",
        "convolutions",
        "ConvNN whose neighbours are near and alike, half and half",
        takes=("k", "candidates", "similarity"),
        options={"similarity": Blend(0.5)},
    ),
    "convnn": Preset("convnn", "both", "ConvNN: neighbours by features alone", takes=("k", "candidates", "similarity")),
    "hybrid": Preset(
        "hybrid", "both", "both branches, mixed by a 1x1", takes=("k", "branch_ratio", "candidates", "similarity")
    ),
    "knn": Preset(
        "convnn",
        "attention",
        "attention to the k best tokens, with the attention's weights",
        takes=("k", "candidates", "similarity"),
        options={"aggregation": "sum", "init": "from_original"},
    ),
}


INITS = ("default", "random", "from_original")

# timm's VGG reads its last map by a 7x7 convolution: part of the classifier, whose kernel covers the whole map.
_NEVER = ("pre_logits.",)


def swap_layers(
    model: nn.Module,
    layer: str,
    *,
    k: int | None = 9,
    branch_ratio: float = 0.5,
    candidates: Candidates | str = "all",
    similarity: Similarity | str | None = None,
    init: str = "default",
    keep: tuple[str, ...] = (),
    pattern: str | Sequence[str] | None = None,
    inplace: bool = False,
    **options: Any,
) -> nn.Module:
    """Return a copy of the model with its convolutions or its attention swapped for ``layer``, a name of ``LAYERS``.

    It replaces attention, and convolutions with a kernel above 1 and stride 1.

    Args:
        model: any module.
        layer: ``"conv"`` and ``"attention"`` return the model itself.
        k: neighbours.
        branch_ratio: the ConvNN's share of a hybrid.
        candidates: the candidate set, or its text form (``"random:32"``).
        similarity: a similarity, or its text form (``"blend:0.5"``); that of the preset if left out.
        init: that of ``convnn.convert``; ``"default"`` starts from the original's weights for the exact equivalents
            (spatial, knn), and from random ones elsewhere.
        keep: names of layers to leave as they are.
        pattern: glob patterns of the names of the layers to swap (``"layer4.*"``); all that can be if left out.
        inplace: change ``model`` itself.
        **options: further ones of ``convnn.convert``. A preset ignores the options above that are not in
            ``LAYERS[layer].takes``.

    Raises:
        ConvNNError: an unknown name or option, or a model without layers to replace.

    Example:
        >>> swap_layers(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), "hybrid", k=5)[0].convnn.k
        5
    """
    check_layer(layer)
    checks.name("init", init, INITS)
    swap = LAYERS[layer]
    arguments: dict[str, Any] = {"k": k, "branch_ratio": branch_ratio, "candidates": parse_candidates(candidates)}
    if similarity is not None:
        arguments["similarity"] = _similarity(layer, parse_similarity(similarity))
    if swap.to is None:
        if options:
            raise invalid(next(iter(options)), f"none (layer={layer!r} swaps nothing)", "one", "leave it out")
        return model
    attention = attention_types()
    types = {"convolutions": _CONVOLUTIONS, "attention": attention}.get(swap.of, (*_CONVOLUTIONS, *attention))
    where = partial(_swappable, types=types, keep=keep)
    if not any(where(name, module) for name, module in model.named_modules()):
        what = "convolutions of kernel > 1 and stride 1" if swap.of == "convolutions" else "attention"
        got = f"{layer!r}, but a {type(model).__name__} has no {'layer' if swap.of == 'both' else what} to swap"
        raise invalid("layer", "one that fits the model", got, _other(swap))
    options = {**swap.options, **{name: value for name, value in arguments.items() if name in swap.takes}, **options}
    if init != "default":
        options["init"] = init
    globs = (pattern,) if isinstance(pattern, str) else pattern
    if globs is not None:
        options["pattern"] = tuple(globs)
    return convert(model, swap.to, where=where, inplace=inplace, **options)


def check_layer(layer: str) -> None:
    """Raise ConvNNError for a name that is not in ``LAYERS``."""
    checks.name("layer", layer, LAYERS)


def _similarity(layer: str, similarity: Similarity) -> Similarity:
    """Raise ConvNNError for a similarity that contradicts the layer's name."""
    fixed = LAYERS[layer].options.get("similarity")
    agrees = isinstance(similarity, Blend) if isinstance(fixed, Blend) else similarity == fixed
    if fixed is not None and not agrees:
        fix = "leave similarity out, or use layer='convnn'"
        raise invalid("similarity", f"{fixed!r}, as layer={layer!r} says", repr(similarity), fix)
    return similarity


def attention_types() -> tuple[type[nn.Module], ...]:
    """Return the attention layers that can be swapped: PyTorch's, and timm's where timm is installed."""
    try:
        from timm.layers import Attention
    except ImportError:
        return (nn.MultiheadAttention,)
    return (nn.MultiheadAttention, Attention)


def _swappable(name: str, module: nn.Module, types: tuple[type[nn.Module], ...], keep: tuple[str, ...]) -> bool:
    last = isinstance(module, _CONVOLUTIONS) and name.startswith(_NEVER)
    return isinstance(module, types) and name not in keep and not last and not why_kept(module)


def _other(swap: Preset) -> str:
    if swap.of == "both":
        return "use another model"
    names = [name for name, other in LAYERS.items() if other.to is not None and other.of not in (swap.of, "both")]
    return f"use one of {', '.join(map(repr, names))}, or another model"
