"""The splits of a run: cut by the seed where none exist, kept with the run, and compared when it is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._utils.files import write_json
from ...errors import ConvNNError, invalid
from ..settings import TrainSettings
from .listing import shown_names

FILE = "splits.json"
ELSEWHERE = "start again in another --out"


def cut(
    count: int, wanted: Iterable[str], settings: TrainSettings, *, labels: Tensor | None = None
) -> tuple[list[int], dict[str, list[int]]]:
    """Cut the ``wanted`` splits from ``count`` training images by the seed; return what is left, and the splits.

    With ``labels``, every class gives the same share of its images, up to one.

    >>> labels = torch.tensor([0] * 20 + [1] * 10)
    >>> rest, splits = cut(30, ["val", "test"], TrainSettings(val_fraction=0.2), labels=labels)
    >>> len(rest), {split: labels[chosen].bincount().tolist() for split, chosen in splits.items()}
    (21, {'val': [4, 2], 'test': [2, 1]})
    >>> sorted([*rest, *splits["val"], *splits["test"]]) == list(range(30))
    True
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
    if labels is not None:
        order = order[_interleaved(labels[order])]
    left = order.tolist()
    chosen = {}
    for split in wanted:
        fraction = settings.val_fraction if split == "val" else settings.test_fraction
        taken = max(1, round(fraction * count))
        chosen[split], left = sorted(left[:taken]), left[taken:]
    return sorted(left), chosen


def _interleaved(labels: Tensor) -> Tensor:
    """Return an order of images of which every beginning has the same share of each class, up to one image."""
    by_class = labels.argsort(stable=True)
    counts = labels.bincount()
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[by_class]]
    share = torch.empty(len(labels), dtype=torch.float64)
    share[by_class] = (place + 0.5).double() / counts[labels[by_class]]
    return share.argsort(stable=True)


def folder_record(classes: list[str], splits: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return what is kept of a folder: the classes in the order of their labels, each split's files and their sizes."""
    kept = {split: {"images": len(f), "sha256": digest(f.items()), "files": dict(f)} for split, f in splits.items()}
    return {"classes": classes, "splits": kept}


def digest(items: Iterable[object]) -> str:
    """Return the SHA-256 of what the items are, in their order."""
    made = hashlib.sha256()
    for item in items:
        made.update(json.dumps(item).encode() + b"\n")
    return made.hexdigest()


def save_splits(record: Mapping[str, Any], path: Path) -> None:
    """Write the record of a run's splits."""
    write_json(path, record)


def check_splits(record: Mapping[str, Any], path: Path) -> None:
    """Raise ConvNNError, with what differs, for a run to resume on other data than it was started with.

    Raises ConvNNError, also for a run of which no splits were kept.
    """
    kept = _load(path)
    if kept == record:
        return
    expected = f"the data with which the run in {path.parent} was started"
    if kept["classes"] != record["classes"]:
        odd = sorted(set(map(str, kept["classes"])) ^ set(map(str, record["classes"])))
        got = f"other classes: {shown_names(odd)}" if odd else "the classes in another order"
        raise invalid("data", expected, got, f"restore the data, or {ELSEWHERE}")
    raise invalid("data", expected, _difference(kept["splits"], record["splits"]), f"restore the data, or {ELSEWHERE}")


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        got = f"none in {path.parent} (an earlier version started it)"
        raise invalid(path.name, "the splits of the run to resume", got, ELSEWHERE)
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for split in kept["splits"].values():
            if "files" in split and digest(split["files"].items()) != split["sha256"]:
                raise _changed(path)
        return {"classes": kept["classes"], "splits": kept["splits"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _changed(path) from error


def _changed(path: Path) -> ConvNNError:
    got = f"{str(path)!r}, which was changed"
    return invalid(path.name, "the file that the run wrote", got, f"restore it, or {ELSEWHERE}")


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how two records of splits differ."""
    if before.keys() != now.keys() or not all("files" in split for split in (*before.values(), *now.values())):
        return f"other images ({_counts(now)}; they were {_counts(before)})"
    old, new = (
        {name: size for split in each.values() for name, size in split["files"].items()} for each in (before, now)
    )
    kinds = {
        "added": [name for name in new if name not in old],
        "removed": [name for name in old if name not in new],
        "of another size": [name for name in new if name in old and old[name] != new[name]],
    }
    differing = [f"{len(names):,} {kind} ({shown_names(names)})" for kind, names in kinds.items() if names]
    return "files that differ: " + ", ".join(differing) if differing else "the same files in other splits"


def _counts(splits: Mapping[str, Any]) -> str:
    return ", ".join(f"{split} {kept['images']}" for split, kept in splits.items())
