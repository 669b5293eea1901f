"""Images in parquet files, in the layout of the Hugging Face hub: a column of bytes and a column of labels."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import ConvNNError, invalid, missing_extra
from .decode import read_image
from .decode_once import LIMIT
from .listing import shown_names
from .sources import Part, Source
from .split_files import files_in, split_files
from .splits import digest

IMAGES, LABELS = ("img", "image"), ("label", "fine_label", "labels", "cls", "target")
"""Names of the columns, the first that is there."""


class Parquet(Source):
    """The images of one split, undecoded in memory."""

    def __init__(self, files: list[Path], root: Path) -> None:
        table, features, columns = _read(files)
        self._bytes = _column(table, columns[0])
        self.labels = torch.tensor(table.column(columns[1]).to_pylist(), dtype=torch.int64)
        self.classes: list[str] | None = features.get(columns[1], {}).get("names")
        self.where = shown_names([path.relative_to(root).as_posix() for path in files])
        self.fingerprint = digest((path.relative_to(root).as_posix(), path.stat().st_size) for path in files)

    def __len__(self) -> int:
        return len(self._bytes)

    def name(self, index: int) -> str:
        """Return the image's number and its files."""
        return f"image {index} of {self.where}"

    def read(self, index: int, mode: str) -> tuple[Any, int]:
        """Return the image of a row, and its label."""
        content = self._bytes[index].as_py() or b""
        labels: Any = self.labels
        return read_image(io.BytesIO(content), mode, name=self.name(index)), int(labels[index])


def parquet_parts(root: Path, chosen: Mapping[str, str]) -> tuple[dict[str, Part], list[str | int]] | None:
    """Return the splits of a folder of parquet files and its classes, or None for a folder without such files.

    The classes are those that the files name, as the hub's do, else their numbers. Raises ConvNNError for files that
    cannot be read, have other columns, or are too large to be kept in memory.
    """
    files = files_in(root, ".parquet")
    if not files:
        return None
    size = sum(path.stat().st_size for path in files)
    if size > LIMIT:
        got = f"{size / 2**30:.1f} GiB"
        fix = "write the images as shards (*.tar), or give the dataset's name: hfds/..."
        raise invalid("data", f"parquet files of at most {LIMIT // 2**30} GiB in {root}", got, fix)
    parts = {split: Part(Parquet(found, root)) for split, found in split_files(root, files, chosen).items()}
    train = parts["train"].source
    names = train.classes if isinstance(train, Parquet) else None
    return parts, numbered_classes(parts, names)


def numbered_classes(parts: Mapping[str, Part], names: list[str] | None) -> list[str | int]:
    """Return the classes of splits whose labels are numbers; raises ConvNNError for labels that the rest lacks."""
    highest = {}
    for split, part in parts.items():
        labels = part.labels()
        if labels is None or len(labels) == 0:
            raise invalid("data", f"images in the {split} split", "none", "check the files")
        if int(labels.min()) < 0:
            raise invalid("data", "labels from 0", f"{int(labels.min())} in {split}", "remove unlabelled images")
        highest[split] = int(labels.max())
    count = len(names) if names else highest["train"] + 1
    for split, label in highest.items():
        if label >= count:
            got = f"{label} in {split}"
            raise invalid("data", f"labels below the number of classes, {count}", got, "align the labels")
    if count < 2:
        got = repr(names or [0])
        raise invalid("data", "a dataset of at least two named classes", got, "add images of other classes")
    return list(names) if names else list(range(count))


def _read(files: list[Path]) -> tuple[Any, dict[str, Any], tuple[str, str]]:
    """Return the two columns of all files, the features that the hub's files describe, and the columns' names."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "train") from error
    tables = []
    columns: tuple[str, str] | None = None
    for path in files:
        try:
            schema = pyarrow.parquet.read_schema(path)
            columns = columns or _columns(path, schema.names)
            tables.append(pyarrow.parquet.read_table(path, columns=list(columns)))
        except ConvNNError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            reason = str(error).strip().split("\n", maxsplit=1)[0]
            fix = "replace it by a good copy, or remove it"
            raise invalid("data", "parquet files that can be read", f"{str(path)!r} ({reason})", fix) from error
    described = json.loads((tables[0].schema.metadata or {}).get(b"huggingface", b"{}"))
    features: dict[str, Any] = described.get("info", {}).get("features", {})
    return pyarrow.concat_tables(tables), features, columns or ("", "")


def _columns(path: Path, names: list[str]) -> tuple[str, str]:
    found = [next((name for name in usual if name in names), None) for usual in (IMAGES, LABELS)]
    if found[0] is None or found[1] is None:
        fix = "rename its columns: image (bytes) and label (a number)"
        raise invalid("data", f"a column of {IMAGES} and one of {LABELS} in {str(path)!r}", repr(names), fix)
    return found[0], found[1]


def _column(table: Any, name: str) -> Any:
    """Return the bytes of an image column, which holds them alone or with a path."""
    import pyarrow

    column = table.column(name)
    kind = column.type
    if pyarrow.types.is_struct(kind) and "bytes" in [kind.field(number).name for number in range(kind.num_fields)]:
        column = pyarrow.chunked_array([chunk.field("bytes") for chunk in column.chunks])
    if not (pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)):
        raise invalid("data", f"the bytes of images in column {name!r}", str(kind), "store encoded images")
    return column
