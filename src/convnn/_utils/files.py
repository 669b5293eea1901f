"""Files and folders of commands: written completely or not at all, and JSON that every parser reads."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import invalid


def to_json(content: Any, *, indent: int | None = 2) -> str:
    """Return lists, tuples, dictionaries and what they hold as JSON, with ``null`` for nan and inf.

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


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside ``folder``; its files are moved into ``folder`` at the end, if nothing is raised.

    So each file is at every moment the old or the new one, never half of it.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with staged(Path(folder)) as temporary:
    ...         _ = (temporary / "a.txt").write_text("a")
    ...     os.listdir(folder)
    ['a.txt']
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            os.replace(file, folder / file.name)


def write_json(path: Path, content: object) -> None:
    """Write JSON, with ``null`` for nan and inf; the file is at every moment the old or the new one."""
    with staged(path.parent) as temporary:
        (temporary / path.name).write_text(to_json(content) + "\n", encoding="utf-8")


def make_folder(path: Path, *, argument: str = "out", fix: str = "choose another --out") -> None:
    """Make a folder and its parents; raises ConvNNError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = f"{str(path)!r} ({error.strerror})"
        raise invalid(argument, "a folder that can be made", got, fix) from error
