"""The files of each split, where a split is made of few large files: parquet and shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ...errors import ConvNNError, invalid
from .endings import is_hidden
from .folders import USUAL
from .listing import natural_key, shown_names, unreadable_folder


def files_in(root: Path, ending: str) -> list[Path]:
    """Return the files with an ending in a folder and in the folders directly in it, in order."""
    try:
        inner = [path for path in sorted(root.iterdir()) if not is_hidden(path.name)]
        below = [path for folder in inner if folder.is_dir() for path in folder.iterdir()]
    except OSError as error:
        raise unreadable_folder(root, error) from error
    found = [path for path in (*inner, *below) if path.suffix.lower() == ending and not is_hidden(path.name)]
    return sorted((path for path in found if path.is_file()), key=lambda path: natural_key(_inside(root, path)))


def split_files(root: Path, files: list[Path], chosen: Mapping[str, str]) -> dict[str, list[Path]]:
    """Return the files of ``train``, ``val`` and ``test``: by the name that was asked for, else by a usual one.

    A name is that of the files' folder, or a word of the file's own name: ``train-0001.tar``, ``val/0.tar``. Where no
    file has the name of a split, all are for training. Raises ConvNNError for files that are in doubt.

    >>> paths = [Path("d/train-0.tar"), Path("d/validation-0.tar")]
    >>> splits = split_files(Path("d"), paths, {"train": "train", "val": "", "test": ""})
    >>> {split: [path.name for path in found] for split, found in splits.items()}
    {'train': ['train-0.tar'], 'val': ['validation-0.tar']}
    """
    found: dict[str, list[Path]] = {}
    rest: list[Path] = []
    asked = {split: name for split, name in chosen.items() if name and (split, name) != ("train", "train")}
    for path in files:
        of = [split for split in USUAL if _belongs(_inside(root, path), split, asked)]
        if len(of) > 1:
            got = f"{_inside(root, path)!r} for {' and for '.join(of)}"
            raise invalid("data", "every file in one split", got, "rename it, or name the splits")
        (found.setdefault(of[0], []) if of else rest).append(path)
    for split, name in asked.items():
        if split not in found:
            got = f"{name!r} (there are {shown_names([_inside(root, path) for path in files])})"
            raise invalid(f"{split}_split", f"the beginning of the name of files in {root}", got, "check it")
    if not found:
        return {"train": rest}
    if rest or "train" not in found:
        raise _doubtful(root, rest, found)
    return found


def _doubtful(root: Path, rest: list[Path], found: Mapping[str, list[Path]]) -> ConvNNError:
    used = ", ".join(split for split in USUAL if split in found)
    got = f"{shown_names([_inside(root, path) for path in rest])} beside {used}" if rest else "none"
    fix = "move other files elsewhere, or name the splits with --train-split, --val-split and --test-split"
    return invalid("data", f"files of a training split in {root}, and all files in a split", got, fix)


def _inside(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _belongs(name: str, split: str, asked: Mapping[str, str]) -> bool:
    """Tell whether a file is of a split: by the folder it is in, else by the words of its name."""
    folder, _, file = name.rpartition("/")
    if split in asked:
        return folder == asked[split] or (file + ".").startswith(tuple(asked[split] + mark for mark in "-_."))
    words = [{folder.casefold()}, set(re.split(r"[^a-z]+", file.casefold()))]
    known = {word for usual in USUAL.values() for word in usual}
    here = next((found for found in words if found & known), set())
    return bool(here & set(USUAL[split]))
