"""The lines that describe the data of a run: the classes, the images of each in every split, what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from .folders import FolderImages
from .listing import HIDDEN, images

MOST = 10
"""Classes that are named; of more, the first."""


def describe(
    classes: Sequence[str | int], counts: Mapping[str, int | None], folder: FolderImages | None = None
) -> list[str]:
    """Return the lines that say what data were found; only of a folder is it known how many images each class has.

    >>> for line in describe(["cat", "dog"], {"train": 1200, "val": None}):
    ...     print(line)
    2 classes: cat, dog
      train  1,200 images
      val    a stream of images
    """
    names = [_shown(name) for name in classes]
    lines = [f"{len(names):,} classes: {_first(names)}"]
    for split, count in counts.items():
        line = f"  {split:6} " + ("a stream of images" if count is None else images(count))
        if folder is not None:
            line += " (cut from train)" if split in folder.cut else ""
            line += f": {_per_class(names, [file.label for file in folder.splits[split]])}"
        lines.append(line)
    if folder is not None:
        left_out = sorted(folder.ignored.items(), key=lambda item: item[0] != HIDDEN)
        if left_out:
            lines.append(f"Ignored: {', '.join(f'{count:,} {kind}' for kind, count in left_out)}")
        if folder.skipped:
            lines.append(skipped_line(folder.skipped))
        if folder.beside:
            lines.append(f"Not used: {', '.join(map(_shown, folder.beside))}")
    return lines


def skipped_line(skipped: Mapping[str, str]) -> str:
    """Return the line that says how many images were left out, and names the first.

    >>> skipped_line({"cat/1.png": "empty", "cat/2.png": "image file is truncated"})
    "Skipped: 2 that cannot be read: 'cat/1.png' (empty), 'cat/2.png' (image file is truncated)"
    """
    named = [f"{name!r} ({why})" for name, why in list(skipped.items())[:3]]
    more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
    return f"Skipped: {len(skipped):,} that cannot be read: {', '.join(named)}{more}"


def _per_class(names: list[str], labels: list[int]) -> str:
    """Write how many images each class has."""
    found = Counter(labels)
    told = [f"{name} {found[label]:,}" for label, name in enumerate(names)]
    if len(names) > MOST:
        numbers = [found[label] for label in range(len(names))]
        return f"{', '.join(told[:MOST])}, ... ({min(numbers):,} to {max(numbers):,} of each class)"
    return ", ".join(told)


def _first(names: list[str]) -> str:
    return ", ".join(names[:MOST]) + (f", ... and {len(names) - MOST:,} more" if len(names) > MOST else "")


def _shown(name: str | int) -> str:
    """Write a name so that it stays on its line, and every terminal can show it."""
    text = str(name)
    return text if text.isprintable() else repr(text)[1:-1]
