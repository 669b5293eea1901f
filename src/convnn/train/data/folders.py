"""The splits of a data folder: which folders they are, which images they hold, and what else was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...errors import invalid
from .endings import is_hidden, kind_of
from .listing import (
    Identity,
    Listing,
    count_images,
    folders_in,
    identity,
    images,
    list_images,
    natural_key,
    shown_names,
)

USUAL = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Names by which a folder is recognised as a split, in any case."""
ITSELF = "."
"""As the training split: the folder itself, whose folders are all classes."""


class ImageFile(NamedTuple):
    """One image.

    Attributes:
        name: relative to the data folder, with ``/``.
        label: the number of its class.
        size: in bytes.
        identity: which file it is, whatever its name.
    """

    name: str
    label: int
    size: int
    identity: Identity


@dataclass(frozen=True)
class FolderImages:
    """What a data folder holds.

    Attributes:
        classes: their names, in the order of the labels.
        splits: the images of ``train``, and of ``val`` and ``test`` where the folder has them.
        ignored: how many files and folders inside the splits were left out, by what they are.
        beside: what stands beside the splits and is not used, in words.
        cut: the splits that were cut from the training images.
        skipped: files that cannot be read and classes without images, with the reason, where they are left out.
    """

    classes: list[str]
    splits: dict[str, list[ImageFile]]
    ignored: Counter[str] = field(default_factory=Counter)
    beside: list[str] = field(default_factory=list)
    cut: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)


def read_folder(root: Path, chosen: Mapping[str, str], *, skip: bool = False) -> FolderImages:
    """List the images of a data folder; ``chosen`` has the names of splits that were asked for.

    With ``skip``, files that cannot be read and classes without images are left out, and listed in ``skipped``.

    The classes are those of the training split; another split may lack some, and may have no others. Raises ConvNNError
    for a folder whose splits or classes are in doubt.
    """
    folders = find_splits(root, chosen)
    listings = {split: _list_split(root, split, folders, skip) for split in folders}
    classes = listings["train"].folders
    if len(classes) < 2:
        fix = "sort the images into one folder a class"
        raise invalid("data", "a dataset of at least two named classes", repr(classes), fix)
    for split, listing in listings.items():
        if not set(listing.folders) <= set(classes):
            odd = sorted(set(listing.folders) ^ set(classes), key=natural_key)
            got = f"different ones: {odd[:5]}"
            raise invalid("data", f"the same classes in {split} as in train", got, "align them")
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: [
            ImageFile(_inside(folders[split], name), labels[_class_of(name)], size, place)
            for name, (size, place) in listing.files.items()
        ]
        for split, listing in listings.items()
    }
    ignored = sum((listing.ignored for listing in listings.values()), Counter[str]())
    skipped = {
        _inside(folders[split], name): why
        for split, listing in listings.items()
        for name, why in listing.skipped.items()
    }
    return FolderImages(classes, splits, ignored, _beside(root, folders), skipped=skipped)


def check_shared(splits: Mapping[str, list[ImageFile]]) -> None:
    """Raise ConvNNError for files that are in two splits, by links: what is held out is not to be trained on."""
    seen: dict[Identity, tuple[str, str]] = {}
    shared = []
    for split, files in splits.items():
        for file in files:
            other, name = seen.setdefault(file.identity, (split, file.name))
            if other != split and file.identity[1]:  # 0 where the system does not number its files
                shared.append(f"{name!r} in {other} as {file.name!r} in {split}")
    if shared:
        more = f" and {len(shared) - 1:,} more" if len(shared) > 1 else ""
        fix = "remove one of the two, or give splits that share none"
        raise invalid("data", "every file in one split", shared[0] + more, fix)


def find_splits(root: Path, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the folder of each split that there is, relative to ``root``; without any, ``train`` is ``root`` itself.

    Raises ConvNNError for a name that was asked for and is not there, for two folders that may be one split, for one
    folder that would be two splits, for a validation or test split without a training split, and for splits further
    down.
    """
    present = folders_in(root)
    flat = chosen["train"] == ITSELF
    found = {split: _find(root, split, chosen[split], [] if flat else present) for split in USUAL}
    if flat:
        found["train"] = ITSELF
    folders = {split: name for split, name in found.items() if name is not None}
    if not folders:
        _check_deeper(root, present)
        return {"train": ITSELF}
    if "train" not in folders:
        fix = "add train/, or give --train-split . if all of its folders are classes"
        raise invalid("data", "a train/ folder beside val/ or test/", repr(str(root)), fix)
    same: dict[Identity, str] = {}
    for split, name in folders.items():
        other = same.setdefault(identity(root / name), split)
        if other != split:
            got = f"{name!r} for {other} and for {split}"
            raise invalid(f"{split}_split", f"another folder than that of {other}", got, "give each split its own")
    return folders


def _find(root: Path, split: str, name: str, present: list[str]) -> str | None:
    """Return the folder of one split: the one that was asked for, else the one with a usual name."""
    usual = USUAL[split]
    asked = bool(name) and (split != "train" or name not in (ITSELF, usual[0]))
    if asked and name != ITSELF and (root / name).is_dir():
        return name
    if asked and (not present or name.casefold() not in usual):
        raise invalid(f"{split}_split", f"a folder inside {root}", repr(name), "check its name")
    matches = [folder for folder in present if folder.casefold() in usual]
    if len(matches) > 1:
        names = " and ".join(f"{match}/" for match in matches)
        fix = "leave one of them" if split == "train" else f"leave one of them, or name it with --{split}-split"
        raise invalid("data", f"one folder for the {split} split in {root}", names, fix)
    return matches[0] if matches else None


def _check_deeper(root: Path, present: list[str]) -> None:
    """Raise ConvNNError for folders that hold splits: to take them for classes would be to train on all splits."""
    deeper: dict[str, list[str]] = {}
    for folder in present:
        inner = folders_in(root / folder)
        splits = {split: [name for name in inner if name.casefold() in usual] for split, usual in USUAL.items()}
        held_out = [*splits["val"], *splits["test"]]
        if splits["train"] and (held_out or len(present) == 1):
            deeper[folder] = [f"{folder}/{name}" for name in (*splits["train"], *held_out)]
    if deeper:
        got = f"{shown_names([name for names in deeper.values() for name in names])} further down"
        where = f"give --data {root / next(iter(deeper))}" if len(deeper) == 1 else "put each class into each split"
        fix = f"{where}, or give --train-split . if these are no splits"
        raise invalid("data", f"the splits directly in {root}, if there are any", got, fix)


def _list_split(root: Path, split: str, folders: Mapping[str, str], skip: bool) -> Listing:
    others = frozenset(identity(root / name) for other, name in folders.items() if other != split)
    hint = "" if folders["train"] == ITSELF else f"; or give --train-split . if {folders[split]}/ is itself a class"
    return list_images(root / folders[split], without=others, hint=hint, skip=skip)


def _inside(folder: str, name: str) -> str:
    return name if folder == ITSELF else f"{folder}/{name}"


def _class_of(name: str) -> str:
    return name.split("/", maxsplit=1)[0]


def _beside(root: Path, folders: Mapping[str, str]) -> list[str]:
    """Name what is beside the splits, with the number of its images."""
    if folders["train"] == ITSELF:
        return []
    used = {Path(name).parts[0] for name in folders.values()}
    lines = [f"{name}/ ({images(count_images(root / name))})" for name in folders_in(root) if name not in used]
    loose = sum(
        path.is_file() and not is_hidden(path.name) and kind_of(path.name) == "image" for path in root.iterdir()
    )
    return [*lines, *([f"{images(loose)} beside the folders"] if loose else [])]
