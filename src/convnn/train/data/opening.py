"""From ``--data`` to the splits of a run: a folder of images, parquet files, shards, or a dataset with a name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...errors import invalid
from ..settings import TrainSettings, is_named
from .folders import FolderImages, check_shared, read_folder
from .named import named_splits, parts_record
from .parquet import parquet_parts
from .shards import Shards, shard_parts
from .sources import Files, Part
from .splits import cut, folder_record
from .transforms import ToTensor

SPLITS = ("train", "val", "test")


class Opened(NamedTuple):
    """What a run reads.

    Attributes:
        parts: the images of each split; of a dataset that is a stream, timm's dataset that iterates.
        classes: their names, or their numbers where they have no names.
        record: what tells these images from others, for a run that is resumed.
        folder: what a folder of images holds, else None.
        skipped: what was left out, with the reason.
    """

    parts: dict[str, Any]
    classes: list[str | int]
    record: dict[str, Any]
    folder: FolderImages | None = None
    skipped: dict[str, str] = {}  # noqa: RUF012 - never written to


def open_splits(settings: TrainSettings, *, augmented: ToTensor, plain: ToTensor) -> Opened:
    """Open ``settings.data``; a split that does not exist is cut from the training images by the seed.

    ``augmented`` and ``plain`` are the transforms of streams. Raises ConvNNError for data that are in doubt.
    """
    chosen = {split: getattr(settings, f"{split}_split") for split in SPLITS}
    skip = settings.bad_images == "skip"
    root = _folder(settings)
    if root is None:
        parts, classes = named_splits(settings, augmented=augmented, plain=plain)
    else:
        found = parquet_parts(root, chosen) or shard_parts(root, chosen, skip=skip)
        if found is None and is_named(settings.data):
            raise invalid("data_dir", "a folder with shards (*.tar)", repr(str(root)), "check --data-dir")
        if found is None:
            return _open_folder(settings, root, chosen)
        parts, classes = dict(found[0]), found[1]
    skipped = {name: why for part in parts.values() for name, why in _skipped(part).items()}
    parts = _with_cuts(parts, settings)
    return Opened(parts, classes, parts_record(classes, parts), skipped=skipped)


def _folder(settings: TrainSettings) -> Path | None:
    """Return the folder of images, parquet files or shards, or None for a dataset that timm knows by name."""
    if not is_named(settings.data):
        return Path(settings.data)
    kind, _, name = settings.data.partition("/")
    if kind.lower() != "wds":
        return None
    root = Path(settings.data_dir or ".")
    return root / name if (root / name).is_dir() else root


def _skipped(part: Any) -> dict[str, str]:
    return part.source.skipped if isinstance(part, Part) and isinstance(part.source, Shards) else {}


def _with_cuts(parts: dict[str, Any], settings: TrainSettings) -> dict[str, Any]:
    """Return the splits in order, those that do not exist cut from the training images."""
    wanted = [split for split in SPLITS if split not in parts]
    if wanted:
        source = parts["train"].source
        left, chosen = cut(len(source), wanted, settings, labels=source.labels)
        for split, indices in {"train": left, **chosen}.items():
            parts[split] = Part(source, torch.tensor(indices, dtype=torch.int64))
    return {split: parts[split] for split in SPLITS}


def _open_folder(settings: TrainSettings, root: Path, chosen: dict[str, str]) -> Opened:
    folder = read_folder(root, chosen, skip=settings.bad_images == "skip")
    train = folder.splits["train"]
    labels = torch.tensor([file.label for file in train], dtype=torch.int64)
    wanted = [split for split in SPLITS if split not in folder.splits]
    left, held_out = cut(len(train), wanted, settings, labels=labels)
    chosen_of = {"train": left, **held_out}
    splits = {**folder.splits, **{split: [train[index] for index in indices] for split, indices in chosen_of.items()}}
    trained = {file.label for file in splits["train"]}
    gone = [name for label, name in enumerate(folder.classes) if label not in trained]
    if gone and held_out:
        got = f"none of {gone[:5]} after {' and '.join(held_out)} were cut off"
        fix = "add images, lower --val-fraction or --test-fraction, or give val/ and test/ folders"
        raise invalid("data", "training images of every class", got, fix)
    check_shared(splits)
    folder = dataclasses.replace(folder, splits={split: splits[split] for split in SPLITS}, cut=tuple(held_out))
    files = {split: {file.name: file.size for file in found} for split, found in folder.splits.items()}
    parts = {split: Part(Files(root, found)) for split, found in folder.splits.items()}
    record = folder_record(folder.classes, files)
    return Opened(parts, list(folder.classes), record, folder, folder.skipped)
