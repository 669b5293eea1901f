"""One family of errors: every message has the argument, the expected and the given value, and a fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConvNNError(ValueError):
    """Raised for every argument that convnn cannot accept.

    The message reads ``argument: expected X, got Y; do Z``.

    >>> issubclass(ConvNNError, ValueError)
    True
    """


class MissingExtraError(ImportError):
    """Raised when a feature needs an optional package that is not installed."""


class RunError(RuntimeError):
    """Raised when a run cannot go on for a reason outside its settings, such as a full disk."""


class DivergedError(RunError):
    """Raised when a training run has numbers that are no longer finite: its loss, or its weights."""


class TerminatedError(RunError):
    """Raised when a run was stopped by SIGTERM, after it has saved where it was."""


class ConversionWarning(UserWarning):
    """Issued when ``convnn.convert`` was asked for a layer that it cannot replace."""


def invalid(argument: str, expected: str, got: object, fix: str) -> ConvNNError:
    """Build the error for one wrong argument.

    >>> print(invalid("k", "at most 4 (there are 4 keys)", 9, "lower k to 4"))
    k: expected at most 4 (there are 4 keys), got 9; lower k to 4
    """
    return ConvNNError(f"{argument}: expected {expected}, got {got}; {fix}")


def unknown_name(argument: str, got: object, allowed: Iterable[str], also: str = "") -> ConvNNError:
    """Build the error for a name that is not one of ``allowed``, suggesting the closest one.

    >>> print(unknown_name("similarity", "cosin", ["cosine", "dot"]))
    similarity: expected one of 'cosine', 'dot', got 'cosin'; did you mean 'cosine'?
    """
    names = list(allowed)
    typed = got.lower() if isinstance(got, str) else ""
    close = difflib.get_close_matches(typed, [name.lower() for name in names], n=1, cutoff=0.5)
    match = next((name for name in names if close and name.lower() == close[0]), None)
    fix = f"did you mean {match!r}?" if match else "choose one of these"
    return invalid(argument, "one of " + ", ".join(map(repr, names)) + also, shown(got), fix)


def shown(value: object) -> str:
    """Write a value for a message: a tensor or array by its shape, anything else in at most 80 characters.

    >>> shown("a" * 100) == "'" + "a" * 76 + "..."
    True
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{type(value).__name__} of shape {tuple(shape)}, {dtype}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Build the error for an optional package that is not installed.

    >>> print(missing_extra("timm", "vision"))
    timm is not installed, and this needs it; in the source folder of convnn run: pip install ".[vision]"
    """
    fix = f'in the source folder of convnn run: pip install ".[{extra}]"'
    return MissingExtraError(f"{package} is not installed, and this needs it; {fix}")
