"""The fields of a command's settings, and the checks that several commands make of them.

PyTorch is imported by the checks, not with this module: a command's help needs none.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from ..errors import invalid


def option(default: Any, text: str) -> Any:
    """Return a dataclass field that is an option of a command, with its help.

    >>> field = option(3, "processes a case")
    >>> field.default, field.metadata["help"]
    (3, 'processes a case')
    """
    return dataclasses.field(default=default, metadata={"help": text})


def positional(text: str) -> Any:
    """Return a dataclass field that is given to a command without a name, and must be.

    >>> positional("a model's name").metadata["positional"]
    True
    """
    return dataclasses.field(metadata={"help": text, "positional": True})


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
