"""JSON that every parser reads: numbers that are not finite are null."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(content: Any, *, indent: int | None = 2) -> str:
    """Write lists, tuples, dictionaries and what they hold as JSON, ``null`` for nan and inf.

    >>> to_json({"loss": float("nan"), "epochs": (1, 2)}, indent=None)
    '{"loss": null, "epochs": [1, 2]}'
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
