"""The text form of candidates and similarities, for configurations, recipes and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import invalid, shown, unknown_name
from ..types import SIMILARITIES, Blend, Candidates, Grid, Random, Similarity, Window

_KINDS: dict[str, tuple[type[Random] | type[Grid] | type[Window], str]] = {
    "random": (Random, "random:32"),
    "grid": (Grid, "grid:5"),
    "window": (Window, "window:7"),
}


def parse_candidates(text: Candidates | str) -> Candidates:
    """Read candidates from words: ``all``, ``random:32``, ``grid:5`` or ``window:7``.

    Further fields follow as ``name=value``: ``random:32,seed=1``, ``grid:5,margin=1``, ``window:7x3,dilation=2``. Other
    values are returned as they are. Raises ConvNNError for other text.

    >>> parse_candidates("random:32"), parse_candidates("window:7,dilation=2")
    (Random(r=32, seed=None, generator=None), Window(size=7, dilation=2, border='clip'))
    """
    if not isinstance(text, str):
        return text
    if text == "all":
        return "all"
    name, _, rest = text.partition(":")
    if name not in _KINDS:
        raise unknown_name("candidates", text if ":" not in text else name, ("all", *_KINDS))
    kind, example = _KINDS[name]
    number, *fields = rest.split(",")
    value = _number(number)
    if value is None or (isinstance(value, tuple) and kind is not Window):
        raise invalid("candidates", f"{name}:NUMBER", repr(text), f"say how many, e.g. {example}")
    allowed = [field.name for field in dataclasses.fields(kind) if field.name != "generator"][1:]
    return kind(value, **_fields("candidates", fields, allowed, text))


def format_candidates(candidates: Candidates) -> str:
    """Write candidates as the words that ``parse_candidates`` reads.

    Raises ConvNNError for an index tensor and a ``torch.Generator``, which have no text form.

    >>> format_candidates(Random(32)), format_candidates(Window((7, 3), dilation=2))
    ('random:32', 'window:7x3,dilation=2')
    """
    if isinstance(candidates, str):
        return candidates
    drawn = isinstance(candidates, Random) and isinstance(candidates.generator, torch.Generator)
    if isinstance(candidates, Tensor) or drawn:
        fix = "use convnn.convert, or Random with a seed"
        raise invalid("candidates", "what can be written down (all, random:32, ...)", shown(candidates), fix)
    name = next(name for name, (kind, _) in _KINDS.items() if isinstance(candidates, kind))
    return f"{name}:{_written(candidates)}"


def parse_similarity(text: Similarity | str) -> Similarity:
    """Read a similarity from words: one of the names, or ``blend:0.5``, ``blend:0.5,feature=euclidean``.

    What is no text is returned as it is. Raises ConvNNError for other words.

    >>> parse_similarity("cosine"), parse_similarity("blend:0.5")
    ('cosine', Blend(lam=0.5, feature='cosine'))
    """
    if not isinstance(text, str):
        return text
    name, _, rest = text.partition(":")
    if name != "blend":
        if text not in SIMILARITIES:
            raise unknown_name("similarity", text, (*SIMILARITIES, "blend:0.5"))
        return text  # type: ignore[return-value]
    number, *fields = rest.split(",")
    value = _number(number, float)
    if value is None:
        raise invalid("similarity", "blend:NUMBER", repr(text), "give the share of the features, e.g. blend:0.5")
    return Blend(value, **_fields("similarity", fields, ["feature"], text))


def format_similarity(similarity: Similarity) -> str:
    """Write a similarity as the words that ``parse_similarity`` reads.

    >>> format_similarity(Blend(0.5)), format_similarity("dot")
    ('blend:0.5', 'dot')
    """
    return similarity if isinstance(similarity, str) else f"blend:{_written(similarity)}"


def _number(text: str, kind: Callable[[str], Any] = int) -> Any:
    """Read a number, or numbers per axis joined by x; None if there are none."""
    try:
        values = tuple(kind(part) for part in text.split("x"))
    except ValueError:
        return None
    return values if len(values) > 1 else values[0]


def _fields(argument: str, texts: list[str], allowed: list[str], whole: str) -> dict[str, Any]:
    """Read ``name=value`` pairs of the fields that a class has."""
    fields = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in allowed:
            raise invalid(argument, f"fields {', '.join(allowed)} after the number", repr(whole), "name=value, each")
        number = _number(value)
        fields[name] = value if number is None else number
    return fields


def _written(spec: Random | Grid | Window | Blend) -> str:
    first, *others = dataclasses.fields(spec)
    parts = [_joined(getattr(spec, first.name))]
    for field in others:
        value = getattr(spec, field.name)
        if value != field.default:
            parts.append(f"{field.name}={_joined(value)}")
    return ",".join(parts)


def _joined(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
