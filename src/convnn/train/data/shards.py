"""Images in WebDataset shards: tar files whose members of one name are one sample, such as ``17.jpg`` and ``17.cls``.

A shard is read through once for an index of its images. Then any image is one read at a known position: an epoch has
the order that the seed gives it, whatever the workers, and continues at any batch. timm's reader of shards and the
package webdataset shuffle through a buffer in each worker, and can do neither.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...errors import invalid
from .decode import read_image
from .endings import image_endings, is_hidden
from .parquet import numbered_classes
from .sources import Part, Source
from .split_files import files_in, split_files
from .splits import digest

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Endings of compressed shards, of which no part can be read alone."""


class Sample(NamedTuple):
    """An image in a shard: the name of its member, the position of its first byte, its size in bytes, its label."""

    name: str
    offset: int
    size: int
    label: int


class Shards(Source):
    """The images of one split."""

    def __init__(self, files: list[Path], root: Path, *, skip: bool = False) -> None:
        self.files, self.root = files, root
        self.skipped: dict[str, str] = {}
        shard, offset, size, label, names = [], [], [], [], []
        for number, path in enumerate(files):
            for sample in _samples(path, self.skipped if skip else None):
                shard.append(number)
                offset.append(sample.offset)
                size.append(sample.size)
                label.append(sample.label)
                names.append(sample.name)
        # Tensors, not lists: a worker process that only looks at a Python object gets a copy of its page of memory.
        self._shard, self._offset, self._size = (torch.tensor(values) for values in (shard, offset, size))
        self.labels = torch.tensor(label, dtype=torch.int64)
        self._names = "\n".join(names).encode()
        self._ends = torch.tensor([len(name.encode()) + 1 for name in names]).cumsum(0)
        self._open: dict[int, int] = {}
        self.fingerprint = digest((path.relative_to(root).as_posix(), path.stat().st_size) for path in files)

    def __len__(self) -> int:
        return len(self._shard)

    def name(self, index: int) -> str:
        """Return the shard, and the name of the image in it."""
        start = int(self._ends[index - 1]) if index else 0
        member = self._names[start : int(self._ends[index]) - 1].decode()
        return f"{self.files[int(self._shard[index])].relative_to(self.root).as_posix()}/{member}"

    def read(self, index: int, mode: str) -> tuple[Any, int]:
        """Return the image of a sample, and its label."""
        number, size = int(self._shard[index]), int(self._size[index])
        labels: Any = self.labels
        try:
            if number not in self._open:
                self._open[number] = os.open(self.files[number], os.O_RDONLY | getattr(os, "O_BINARY", 0))
            content = os.pread(self._open[number], size, int(self._offset[index]))
        except OSError as error:
            got = f"{str(self.files[number])!r} ({error.strerror or error})"
            raise invalid("data", "shards that can be read", got, "restore it") from error
        return read_image(io.BytesIO(content), mode, name=repr(self.name(index))), int(labels[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for handle in self.__dict__.get("_open", {}).values():
            os.close(handle)


def shard_parts(root: Path, chosen: Mapping[str, str], *, skip: bool) -> tuple[dict[str, Part], list[str | int]] | None:
    """Return the splits of a folder of shards and its classes, or None for a folder without shards.

    The classes are the lines of ``classes.txt`` in the folder, else the numbers of the labels. With ``skip``, samples
    without an image or a label and the rest of a shard that was cut short are left out, and listed in ``skipped`` of
    the source. Raises ConvNNError for shards that are compressed, damaged or without labels.
    """
    files = files_in(root, ".tar")
    if not files:
        packed = [path.name for path in root.iterdir() if path.name.lower().endswith(PACKED)]
        if packed:
            raise invalid("data", f"shards that are not compressed in {root}", repr(packed[0]), "unpack it to .tar")
        return None
    parts = {split: Part(Shards(found, root, skip=skip)) for split, found in split_files(root, files, chosen).items()}
    return parts, numbered_classes(parts, _class_names(root))


def _class_names(root: Path) -> list[str] | None:
    path = root / "classes.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else None


def _samples(path: Path, skipped: dict[str, str] | None) -> Iterator[Sample]:
    """Yield the samples of a shard; what is wrong is an error, or noted in ``skipped``."""
    image: Sample | None = None
    label: int | None = None
    key = ""
    for name, member, content in _members(path, skipped):
        folder, _, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        if (here := f"{folder}/{stem}") != key:
            yield from _finished(path, key, image, label, skipped=skipped)
            key, image, label = here, None, None
        if "." + ending.lower().rpartition(".")[2] in image_endings() and image is None:
            image = Sample(name, member.offset_data, member.size, -1)
        elif content is not None:
            found = _label(ending.lower(), content)
            label = found if label is None else label
    yield from _finished(path, key, image, label, skipped=skipped)


def _members(path: Path, skipped: dict[str, str] | None) -> Iterator[tuple[str, tarfile.TarInfo, bytes | None]]:
    """Yield the files of a shard, the contents of those that may have the label."""
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                name = member.name
                vars(shard)["members"].clear()  # else all of them are kept
                if member.isfile() and not is_hidden(name.rpartition("/")[2]):
                    labelled = name.lower().endswith((".cls", ".json"))
                    file = shard.extractfile(member) if labelled else None
                    yield name, member, file.read() if file is not None else None
            _check_end(shard)
    except (tarfile.TarError, OSError, EOFError) as error:
        _note(skipped, path.name, f"the rest of it cannot be read: {error}")


def _check_end(shard: tarfile.TarFile) -> None:
    """Raise ReadError for a shard without the block of zeros that ends it: tarfile takes any damage for the end."""
    if shard.fileobj is not None:
        shard.fileobj.seek(vars(shard)["offset"])
        if shard.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("unexpected end of data")


def _label(ending: str, content: bytes) -> int | None:
    """Return the label that a member has: a number in ``.cls``, or the field ``label`` of ``.json``."""
    try:
        found = json.loads(content).get("label") if ending.endswith("json") else int(content)
        return None if found is None else int(found)
    except (ValueError, TypeError, AttributeError):
        return None


def _finished(
    path: Path, key: str, image: Sample | None, label: int | None, *, skipped: dict[str, str] | None
) -> Iterator[Sample]:
    if image is not None and label is not None:
        yield image._replace(label=label)
    elif key and (image is not None or label is not None):
        name = f"{path.name}/{key.lstrip('/')}"
        _note(skipped, name, "no label in .cls or .json" if image else "a label without an image")


def _note(skipped: dict[str, str] | None, name: str, reason: str) -> None:
    """Note what is left out; raise ConvNNError where nothing may be."""
    if skipped is None:
        fix = "mend it, or give --bad-images skip"
        raise invalid("data", "shards of images with labels", f"{name!r} ({reason})", fix)
    skipped[name] = reason
