"""The images below a folder, whose first level is the classes; in the same order on every file system."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import ConvNNError, invalid
from .endings import ending_of, is_hidden, kind_of

LINKS_BACK = "linked to a folder above"
"""Counted as ignored: such links lead nowhere new."""
RUNS = "with runs of convnn train"
"""Counted as ignored: folders without images in which ``convnn train`` has written."""
HIDDEN = "hidden"
"""Counted as ignored: what ``is_hidden``."""


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a key that sorts numbers by their value.

    >>> sorted(["b10", "B9", "a"], key=natural_key)
    ['a', 'B9', 'b10']
    """
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


Identity = tuple[int, int]
"""What all names of one file or folder have in common."""


def identity(folder: Path) -> Identity:
    """Return what all names of a folder have in common."""
    status = folder.stat()
    return status.st_dev, status.st_ino


@dataclass
class Listing:
    """What is below one folder.

    Attributes:
        folders: the folders directly in it, in order: the classes.
        files: the images by name relative to it, with ``/``; of each its size in bytes, and which file it is.
        ignored: how many files and folders were left out, by what they are.
        unknown: files that may be images, by ending.
        broken: files that cannot be images, and why.
        skipped: of these, and of classes without images, what was left out, and why.
    """

    folders: list[str] = field(default_factory=list)
    files: dict[str, tuple[int, Identity]] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def list_images(
    folder: Path, *, without: frozenset[Identity] = frozenset(), hint: str = "", skip: bool = False
) -> Listing:
    """Return the images below a folder, one folder per class; folders in ``without`` (by ``identity``) are left out.

    ``hint`` is what else may mend images that are in no class; a folder that is not the whole of the data has one. With
    ``skip``, files that cannot be read and classes without images are left out, and noted in ``skipped``.

    Raises ConvNNError for images outside any class, classes without images, names that differ by case alone, files that
    cannot be read or may be images of another format, and folders that cannot be read.
    """
    found = Listing()
    _walk(folder, "", found, without)
    found.folders.sort(key=natural_key)
    found.files = {name: found.files[name] for name in sorted(found.files, key=natural_key)}
    if skip:
        _skip(found)
    _check_files(folder, found, hint)
    _check_classes(folder, found, hint)
    return found


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders directly in a folder, in order, without those that are hidden."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _is_folder(entry) and not is_hidden(entry.name)]
    except OSError as error:
        raise unreadable_folder(folder, error) from error
    return sorted(names, key=natural_key)


def count_images(folder: Path) -> int:
    """Return the number of images below a folder, whatever else is there; links are not followed."""
    total = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        total += sum(kind_of(name) == "image" and not is_hidden(name) for name in files)
    return total


def images(count: int) -> str:
    """Write a number of images.

    >>> images(1), images(1200)
    ('1 image', '1,200 images')
    """
    return f"{count:,} image" + ("" if count == 1 else "s")


def shown_names(names: list[str], *, most: int = 3) -> str:
    """Write the first names of a list, and how many there are more.

    >>> shown_names(["a", "b", "c", "d", "e"])
    "'a', 'b', 'c' and 2 more"
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def unreadable_folder(folder: Path, error: OSError) -> ConvNNError:
    """Build the error for a folder that cannot be listed."""
    got = f"{str(folder)!r} ({error.strerror or error})"
    return invalid("data", "a folder that can be read", got, "check its name and its permissions")


def _walk(
    folder: Path,
    name: str,
    found: Listing,
    without: frozenset[Identity],
    above: tuple[Identity, ...] = (),
) -> None:
    """Add what is in a folder, whose ``name`` is relative to the first one; ``above`` has the folders around it."""
    try:
        here = (*above, identity(folder))
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable_folder(folder, error) from error
    for entry in listed:
        inner = f"{name}/{entry.name}" if name else entry.name
        if is_hidden(entry.name):
            found.ignored[HIDDEN] += 1
        elif not _is_folder(entry):
            _add_file(entry, inner, found)
        elif (place := identity(folder / entry.name)) in here:
            found.ignored[LINKS_BACK] += 1
        elif place not in without:
            if not name:
                found.folders.append(entry.name)
            _walk(folder / entry.name, inner, found, without, here)


def _holds_run(folder: Path) -> bool:
    return any((path.parent / "result.json").exists() for path in folder.rglob("settings.yaml"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _add_file(entry: os.DirEntry[str], name: str, found: Listing) -> None:
    kind, ending = kind_of(entry.name), ending_of(entry.name)
    if kind == "other":
        found.ignored[ending or "without an ending"] += 1
    elif kind == "unknown":
        found.unknown.setdefault(ending or "without an ending", []).append(name)
    else:
        try:
            status = entry.stat()
        except OSError as error:
            found.broken[name] = error.strerror or str(error)
            return
        if not stat.S_ISREG(status.st_mode):
            found.broken[name] = "no regular file"
        elif status.st_size == 0:
            found.broken[name] = "empty"
        else:
            found.files[name] = status.st_size, (status.st_dev, status.st_ino)


def _skip(found: Listing) -> None:
    """Leave out files that cannot be read, and classes without images where others have some."""
    unknown = {name: "no image format that Pillow reads" for names in found.unknown.values() for name in names}
    found.skipped = {**found.broken, **unknown}
    found.broken, found.unknown = {}, {}
    filled = {name.split("/", maxsplit=1)[0] for name in found.files}
    if filled:
        found.skipped.update({f"{name}/": "a class without images" for name in found.folders if name not in filled})
        found.folders = [name for name in found.folders if name in filled]


def _check_files(folder: Path, found: Listing, hint: str) -> None:
    """Raise ConvNNError for files that may be images that cannot be read, and images of no class."""
    if found.unknown:
        kinds = sorted(found.unknown.items(), key=lambda item: -len(item[1]))
        got = ", ".join(f"{len(names):,} {ending} ({names[0]!r})" for ending, names in kinds[:8])
        fix = "convert them to an image format that Pillow reads, or move them elsewhere"
        raise invalid("data", f"images that can be read in {folder}", f"files that cannot: {got}", fix)
    if found.broken:
        got = ", ".join(f"{name!r} ({reason})" for name, reason in list(found.broken.items())[:3])
        more = f" and {len(found.broken) - 3:,} more" if len(found.broken) > 3 else ""
        raise invalid("data", f"images that can be read in {folder}", got + more, "replace or remove them")
    loose = [name for name in found.files if "/" not in name]
    if loose:
        fix = "move each into the folder of its class (the first folder below the split), or elsewhere" + hint
        got = f"{len(loose):,} beside them: {shown_names(loose)}"
        raise invalid("data", f"every image of {folder} in the folder of a class", got, fix)


def _check_classes(folder: Path, found: Listing, hint: str) -> None:
    """Raise ConvNNError for classes without images, and two whose names are one on some file systems."""
    filled = {name.split("/", maxsplit=1)[0] for name in found.files}
    if not filled:
        fix = "add images, or remove the folder" if hint else "check the path"
        got = f"no image in {'its folders ' + shown_names(found.folders) if found.folders else 'it'}"
        raise invalid("data", f"one folder of images per class in {str(folder)!r}", got, fix)
    empty = [name for name in found.folders if name not in filled]
    if runs := [name for name in empty if _holds_run(folder / name)]:
        empty = [name for name in empty if name not in runs]
        found.folders = [name for name in found.folders if name not in runs]
        found.ignored[RUNS] += len(runs)
    if empty:
        got = f"none in {shown_names(empty)}"
        raise invalid("data", f"images in every class folder of {folder}", got, "add images, or remove the folder")
    alike: dict[str, list[str]] = {}
    for name in found.folders:
        alike.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    twice = [names for names in alike.values() if len(names) > 1]
    if twice:
        got = " and ".join(map(repr, twice[0]))
        fix = "merge them, or give them names that differ by more than case"
        raise invalid("data", f"distinct names of the classes in {folder}", got, fix)
