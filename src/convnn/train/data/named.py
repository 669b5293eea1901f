"""Datasets that timm knows by name: ``torch/cifar10``, ``hfds/...``, and streams."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import IterableDataset

from ...errors import MissingExtraError, invalid, missing_extra
from ..settings import TrainSettings
from .decode import as_mode, read_image, unreadable
from .sources import Part, Source
from .splits import digest

try:
    import timm.data
except ImportError as error:
    raise missing_extra(error.name or "timm", "train") from error


class ReaderImages(Source):
    """One split of a dataset whose images timm's reader gives by number; one that cannot be read is an error."""

    def __init__(self, reader: Any, where: str) -> None:
        self.reader, self.where = reader, where
        table: Any = getattr(reader, "dataset", None)
        names = getattr(table, "column_names", None) or ()
        if "label" in names:
            self.labels = torch.tensor(list(table["label"]), dtype=torch.int64)
        fingerprint = getattr(table, "_fingerprint", None)
        self.fingerprint = fingerprint if isinstance(fingerprint, str) else None

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, index: int) -> str:
        """Return the image's number and its dataset."""
        return f"image {index} of {self.where}"

    def read(self, index: int, mode: str) -> tuple[Any, int]:
        """Return an image, and its label."""
        # timm's own dataset takes the next image, of whichever split, for one that cannot be read.
        source, label, *_ = self.reader[index]
        return read_image(source, mode, name=self.name(index)), int(label)


class TorchImages(Source):
    """One split of a dataset of torchvision."""

    def __init__(self, dataset: Any, where: str) -> None:
        self.dataset, self.where = dataset, where
        labels = getattr(dataset, "targets", None)
        if isinstance(labels, list | tuple | torch.Tensor):
            self.labels = torch.as_tensor(labels, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """Return the image's number and its dataset."""
        return f"image {index} of {self.where}"

    def read(self, index: int, mode: str) -> tuple[Any, int]:
        """Return an image, and its label."""
        try:
            image, label = self.dataset[index]
        except Exception as error:  # a decoder that meets damaged data raises errors of any type
            raise unreadable(self.name(index), error) from error
        return as_mode(image, mode), int(label)


def named_splits(settings: TrainSettings, *, augmented: Any, plain: Any) -> tuple[dict[str, Any], list[str | int]]:
    """Open the splits of a named dataset, those that have a name: each a Part, or a stream; and the classes.

    Streams are transformed by ``augmented`` for training and by ``plain`` otherwise. Raises ConvNNError when there are
    no images, when the splits have different classes, or for a stream that lacks a split.
    """
    held_out = "validation" if settings.data.lower().startswith("torch/") else "test"
    names = {
        "train": settings.train_split, "val": settings.val_split, "test": settings.test_split or held_out
    }  # fmt: skip
    found: dict[str, Any] = {}
    classes: list[str | int] = []
    for split, name in names.items():
        if name:
            dataset = open_split(settings, name, augmented if split == "train" else plain)
            here = class_names(dataset)
            classes = classes or here
            _check_classes(split, here, classes)
            found[split] = dataset if isinstance(dataset, IterableDataset) else Part(_source(settings, name, dataset))
    missing = [split for split in names if split not in found]
    if missing and isinstance(found["train"], IterableDataset):
        fix = " ".join(f"--{split}-split NAME" for split in missing)
        got = f"no {' or '.join(missing)}"
        raise invalid("data", "splits by name for a dataset that is a stream", got, f"give {fix}")
    return found, classes


def _source(settings: TrainSettings, split: str, dataset: Any) -> Source:
    where = f"{settings.data}, split {split!r}"
    if isinstance(dataset, timm.data.ImageDataset):
        return ReaderImages(dataset.reader, where)
    dataset.transform = None
    return TorchImages(dataset, where)


def open_split(settings: TrainSettings, split: str, image_to_tensor: Any) -> Any:
    """Open one split by timm; an error of timm's is passed on with what was asked for."""
    try:
        dataset = timm.data.create_dataset(
            settings.data,
            root=settings.data_dir or None,
            split=split,
            is_training=split == settings.train_split,
            download=settings.download,
            batch_size=settings.batch_size,
            seed=settings.seed,
            transform=image_to_tensor,
        )
    except ImportError as error:
        raise _missing_package(settings.data, error) from error
    except (ValueError, RuntimeError, AssertionError, OSError, KeyError) as error:
        got = f"{settings.data!r}, split {split!r} ({error})"
        fix = "check --data, --data-dir and the names of the splits, or let it --download"
        raise invalid("data", "images that timm can read", got, fix) from error
    if getattr(dataset, "transform", None) is None:
        dataset.transform = image_to_tensor
    return dataset


def class_names(dataset: Any) -> list[str | int]:
    """Return the classes of a dataset in the order of their labels; raises ConvNNError when it does not know them."""
    names: Any = getattr(dataset, "classes", None)
    reader = getattr(dataset, "reader", None)
    mapping = getattr(reader, "class_to_idx", None)
    if names is None and mapping:
        names = sorted(mapping, key=mapping.__getitem__)
    features = getattr(getattr(reader, "dataset", None), "features", None)
    if names is None and features is not None:
        names = getattr(features.get("label"), "names", None)
    if not names or len(names) < 2:
        got = repr(list(names or []))
        raise invalid("data", "a dataset of at least two named classes", got, "sort the images into one folder a class")
    return list(names)


def parts_record(classes: list[str | int], parts: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a dataset that is no folder: the classes, and what tells each split from another one."""
    return {"classes": list(classes), "splits": {split: _marks(part) for split, part in parts.items()}}


def _marks(part: Any) -> dict[str, Any]:
    """Return a split's length, where it was cut from another one, the fingerprint of its files, and the labels'."""
    if not isinstance(part, Part):
        return {"images": len(part) if hasattr(part, "__len__") else None}
    source, indices = part
    marks: dict[str, Any] = {"images": len(source if indices is None else indices)}
    if source.fingerprint is not None:
        marks["fingerprint"] = source.fingerprint
    if source.labels is not None:
        marks["labels"] = digest(source.labels.tolist())
    if indices is not None:
        marks.update({"of": len(source), "cut": digest(indices.tolist())})
    return marks


def _missing_package(data: str, error: ImportError) -> ImportError:
    """Say what installs the package that reads a dataset; TensorFlow is in no extra."""
    kind = data.split("/", maxsplit=1)[0].lower()
    if kind in ("hfds", "hfids"):
        return missing_extra("datasets", "train")
    package = "tensorflow-datasets" if kind == "tfds" else error.name or "a package"
    return MissingExtraError(f"{package} is not installed, and {data} needs it; run: pip install {package}")


def _check_classes(split: str, here: list[str | int], classes: list[str | int]) -> None:
    if here != classes:
        odd = sorted(set(map(str, here)) ^ set(map(str, classes)))
        raise invalid("data", f"the same classes in {split} as in train", f"different ones: {odd[:5]}", "align them")
