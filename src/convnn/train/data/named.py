"""Datasets that timm knows by name: ``torch/cifar10``, ``hfds/...``, and streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Subset

from ...errors import MissingExtraError, invalid, missing_extra
from ..settings import TrainSettings
from .decode import read_image
from .splits import cut, digest

try:
    import timm.data
except ImportError as error:
    raise missing_extra(error.name or "timm", "train") from error

Steps = Callable[[Any], torch.Tensor]


class NamedImages(Dataset[Any]):
    """One split of a dataset whose images timm's reader gives by number; one that cannot be read is an error."""

    def __init__(self, reader: Any, image_to_tensor: Steps, *, name: str) -> None:
        self.reader, self.image_to_tensor, self.name = reader, image_to_tensor, name

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an image as a tensor, and its label."""
        # timm's own dataset takes the next image, of whichever split, for one that cannot be read.
        source, label, *_ = self.reader[index]
        image = read_image(source, getattr(self.image_to_tensor, "mode", "RGB"), name=f"image {index} of {self.name}")
        return self.image_to_tensor(image), label


def named_splits(settings: TrainSettings, *, augmented: Steps, plain: Steps) -> dict[str, Any]:
    """Open the splits of a named dataset; one that has no name is cut from the training images by the seed.

    Raises ConvNNError when there are no images, or when the splits have different classes.
    """
    held_out = "validation" if settings.data.lower().startswith("torch/") else "test"
    names = {"val": settings.val_split or None, "test": settings.test_split or held_out}
    train, watched = (open_split(settings, settings.train_split, steps) for steps in (augmented, plain))
    classes = class_names(train)
    found: dict[str, Any] = {"train": train}
    for split, name in names.items():
        if name is not None:
            found[split] = open_split(settings, name, plain)
            _check_classes(split, class_names(found[split]), classes)
    wanted = [split for split in names if split not in found]
    if wanted and isinstance(train, IterableDataset):
        fix = " ".join(f"--{split}-split NAME" for split in wanted)
        got = f"no {' or '.join(wanted)}"
        raise invalid("data", "splits by name for a dataset that is a stream", got, f"give {fix}")
    if wanted:
        left, chosen = cut(len(train), wanted, settings)
        found.update({split: Subset(watched, indices) for split, indices in chosen.items()})
        found["train"] = Subset(train, left)
    return found


def open_split(settings: TrainSettings, split: str, image_to_tensor: Steps) -> Any:
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
    if isinstance(dataset, timm.data.ImageDataset):
        return NamedImages(dataset.reader, image_to_tensor, name=f"{settings.data}, split {split!r}")
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


def named_record(classes: list[str | int], splits: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of a named dataset: the classes, and what tells each split from another one."""
    return {"classes": list(classes), "splits": {split: _marks(dataset) for split, dataset in splits.items()}}


def _marks(dataset: Any) -> dict[str, Any]:
    """Return a split's length, where it was cut from another one, the fingerprint of Hugging Face, and the labels'."""
    if isinstance(dataset, Subset):
        whole = _marks(dataset.dataset)
        return {**whole, "images": len(dataset), "of": whole["images"], "cut": digest(dataset.indices)}
    marks: dict[str, Any] = {"images": len(dataset) if hasattr(dataset, "__len__") else None}
    fingerprint = getattr(getattr(getattr(dataset, "reader", None), "dataset", None), "_fingerprint", None)
    if isinstance(fingerprint, str):
        marks["fingerprint"] = fingerprint
    labels = getattr(dataset, "targets", None)
    if isinstance(labels, list | tuple | torch.Tensor):
        marks["labels"] = digest(labels.tolist() if isinstance(labels, torch.Tensor) else map(int, labels))
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
