"""The fields of a command's settings, and the checks that several commands make of them.

PyTorch is imported by the checks, not with this module: a command's help needs none.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import invalid


def option(default: Any, text: str) -> Any:
    """Return a dataclass field that is an option of a command, with its help.

    >>> field = option(3, "processes a case")
    >>> field.default, field.metadata["help"]
    (3, 'processes a case')
    """
    return dataclasses.field(default=default, metadata={"help": text})


def positional(text: str, *, default: Any = dataclasses.MISSING) -> Any:
    """Return a dataclass field that is given to a command without a name, and must be unless it has a ``default``.

    >>> positional("a model's name").metadata["positional"]
    True
    """
    return dataclasses.field(default=default, metadata={"help": text, "positional": True})


def check_whole(argument: str, value: object, at_least: int, *, optional: bool = False) -> None:
    """Raise ConvNNError unless a value is an int of at least ``at_least``, or None where it is ``optional``.

    >>> check_whole("epochs", 0, 1)
    Traceback (most recent call last):
        ...
    convnn.errors.ConvNNError: epochs: expected a whole number of at least 1, got 0; use 1 or more
    """
    from .. import _checks as checks

    if value is not None or not optional:
        checks.whole(argument, value, at_least=at_least, fix=f"use {at_least} or more")


def check_number(argument: str, value: object, limits: tuple[float, float], *, words: str) -> None:
    """Raise ConvNNError unless a value is a finite number within ``limits``, which ``words`` describe.

    >>> check_number("warmup", 2, (0.0, 1.0), words="in [0, 1]")
    Traceback (most recent call last):
        ...
    convnn.errors.ConvNNError: warmup: expected a number in [0, 1], got 2; change it
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not limits[0] <= float(str(value)) <= limits[1]:
        raise invalid(argument, f"a number {words}", repr(value), "change it")


def check_folder(argument: str, value: str) -> None:
    """Raise ConvNNError unless a value names a folder, or none yet.

    >>> check_folder("out", "runs/new")
    """
    path = Path(value)
    if not value or (path.exists() and not path.is_dir()):
        raise invalid(argument, "the name of a folder (made if it does not exist)", repr(value), "choose another name")


def check_types(settings: Any) -> None:
    """Raise ConvNNError for the first field of a dataclass whose value is not of the field's type.

    Where values come from a file, nothing else has looked at their types.

    >>> @dataclasses.dataclass
    ... class Settings:
    ...     epochs: int = 1
    >>> check_types(Settings("many"))
    Traceback (most recent call last):
        ...
    convnn.errors.ConvNNError: epochs: expected a whole number, got 'many'; change it
    """
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if not any(_is(value, get_origin(kind) or kind) for kind in kinds):
            words = " or ".join(_KINDS.get(get_origin(kind) or kind, "another value") for kind in kinds)
            raise invalid(field.name, words, repr(value), "change it")


_KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "keys and values",
    NoneType: "nothing",
}


def _is(value: object, kind: Any) -> bool:
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, {float: (int, float), tuple: (list, tuple)}.get(kind, kind))
