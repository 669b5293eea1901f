"""Images from a folder, or from any dataset that timm reads: splits by name, or cut from the training images by the
seed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ..errors import invalid, missing_extra
from ..models.backbones import InputConfig
from .data import next_epoch
from .module import mixed_seed, seed_epoch
from .settings import TrainSettings, is_named

try:
    import timm.data
    from lightning.pytorch import LightningDataModule
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

VAL_FOLDERS, TEST_FOLDERS = ("val", "valid", "validation"), ("test",)
TRAIN_FOLDERS = ("train", "training")


class ImageData(LightningDataModule):
    """The splits of ``settings.data``, transformed to what a model ``takes``.

    A split that exists is used: the folders ``train``, ``val`` and ``test``, or the names in the settings. One that
    does not is cut from the training images by the seed. ``classes`` holds the names of the classes, or their numbers
    where the dataset has no names. Raises ConvNNError when there are no images, or when the splits have different
    classes.
    """

    def __init__(self, settings: TrainSettings, *, takes: InputConfig) -> None:
        super().__init__()
        self.settings = settings
        augmented = transform(settings, takes=takes, training=True)
        plain = transform(settings, takes=takes, training=False)
        names = _split_names(settings)
        train, watched = open_split(settings, names["train"], augmented), open_split(settings, names["train"], plain)
        self.classes = class_names(train)
        self.datasets: dict[str, Any] = {"train": train}
        for split in ("val", "test"):
            if names[split] is not None:
                self.datasets[split] = open_split(settings, names[split], plain)
                self._check_classes(split)
        self._cut(watched)
        for split, dataset in self.datasets.items():
            if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
                raise invalid(
                    "data", f"images in the {split} split", "none", "check the folder, or the fractions cut off"
                )

    def _check_classes(self, split: str) -> None:
        here = class_names(self.datasets[split])
        if here != self.classes:
            odd = sorted(set(map(str, here)) ^ set(map(str, self.classes)))
            raise invalid(
                "data", f"the same classes in {split} as in train", f"different ones: {odd[:5]}", "align them"
            )

    def _cut(self, watched: Any) -> None:
        """Cut the splits that do not exist from the training images, which then appear in no other split."""
        wanted = [split for split in ("val", "test") if split not in self.datasets]
        if not wanted:
            return
        train, settings = self.datasets["train"], self.settings
        if isinstance(train, IterableDataset):
            fix = " ".join(f"--{split}-split NAME" for split in wanted)
            raise invalid(
                "data", "splits by name for a dataset that is a stream", f"no {' or '.join(wanted)}", f"give {fix}"
            )
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        for split in wanted:
            fraction = settings.val_fraction if split == "val" else settings.test_fraction
            count = max(1, round(fraction * len(train)))
            chosen, order = order[:count], order[count:]
            self.datasets[split] = Subset(watched, sorted(chosen))
        self.datasets["train"] = Subset(train, sorted(order))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches of the epoch that is about to start, in an order of its own."""
        return self._loader("train", epoch=next_epoch(self))

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test batches."""
        return self._loader("test")

    def _loader(self, split: str, *, epoch: int | None = None) -> DataLoader[Any]:
        """Make the loader of a split; with an epoch it shuffles, and is the same however often it is iterated.

        (Lightning iterates once when a run is resumed and twice otherwise, so a sampler with a generator would not do.)
        """
        dataset, order = self.datasets[split], None
        mixed = mixed_seed(self.settings.seed, -2 if epoch is None else epoch)
        if epoch is not None and not isinstance(dataset, IterableDataset):
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(mixed)).tolist()
        return DataLoader(
            dataset,
            batch_size=self.settings.batch_size,
            sampler=order,
            num_workers=self.settings.workers,
            generator=torch.Generator().manual_seed(
                mixed
            ),  # else every iterator would draw from the run's random state
            worker_init_fn=functools.partial(_seed_worker, mixed),
            pin_memory=torch.cuda.is_available(),
        )

    def counts(self) -> dict[str, int | None]:
        """Return the number of images of each split; None for a stream of unknown length."""
        return {split: len(d) if hasattr(d, "__len__") else None for split, d in self.datasets.items()}


def _seed_worker(seed: int, worker: int) -> None:
    """Give a worker process random states of its own, made of the run's seed, the epoch and the worker's number."""
    seed_epoch(seed, worker)


@dataclass(frozen=True)
class ToTensor:
    """A PIL image of any mode to a tensor; worker processes can pickle it."""

    mode: str
    steps: Callable[[Any], torch.Tensor]

    def __call__(self, image: Any) -> torch.Tensor:
        """Return ``(channels, size, size)``."""
        return self.steps(image.convert(self.mode))


def transform(settings: TrainSettings, *, takes: InputConfig, training: bool) -> ToTensor:
    """Return timm's transform from a PIL image to a tensor ``(channels, size, size)``, as ``settings.augment`` says."""
    size, colour = takes.size, settings.channels == 3
    common: dict[str, Any] = {"input_size": (settings.channels, size, size), "is_training": training}
    common.update(mean=takes.mean if colour else (0.5,), std=takes.std if colour else (0.5,))
    options: dict[str, dict[str, Any]] = {
        "none": {"no_aug": True},
        "light": {"scale": (0.6, 1.0), "color_jitter": 0.0},
        "strong": {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"},
    }
    if training:
        common.update(options[settings.augment])
    else:
        common.update(crop_pct=1.0 if size < 96 else None)
    return ToTensor("RGB" if colour else "L", timm.data.create_transform(**common))


def open_split(settings: TrainSettings, split: str | None, image_to_tensor: ToTensor) -> Any:
    """Open one split by timm; an error of timm's is passed on with what was asked for."""
    named = is_named(settings.data)
    root = (settings.data_dir or None) if named else str(Path(settings.data) / split if split else settings.data)
    options = (
        {"split": split, "download": settings.download, "seed": settings.seed} if named else {"search_split": False}
    )
    try:
        dataset = timm.data.create_dataset(
            settings.data if named else "",
            root=root,
            is_training=split == settings.train_split,
            batch_size=settings.batch_size,
            transform=image_to_tensor,
            **options,
        )
    except (ValueError, RuntimeError, AssertionError, OSError, ImportError, KeyError) as error:
        what = f"{settings.data!r}, split {split!r}" if split else repr(settings.data)
        fix = "check --data, --data-dir and the names of the splits, or let it --download"
        raise invalid("data", "images that timm can read", f"{what} ({error})", fix) from error
    if getattr(dataset, "transform", None) is None:
        dataset.transform = image_to_tensor
    return dataset


def class_names(dataset: Dataset[Any]) -> list[str | int]:
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


def _split_names(settings: TrainSettings) -> dict[str, str | None]:
    """Return the name of each split; None stands for one that does not exist (for train: the folder itself)."""
    if is_named(settings.data):
        held_out = "validation" if settings.data.lower().startswith("torch/") else "test"
        return {
            "train": settings.train_split,
            "val": settings.val_split or None,
            "test": settings.test_split or held_out,
        }
    found: dict[str, str | None] = {}
    folder = Path(settings.data)
    for split, chosen, usual in (
        ("train", settings.train_split, TRAIN_FOLDERS),
        ("val", settings.val_split, VAL_FOLDERS),
        ("test", settings.test_split, TEST_FOLDERS),
    ):
        if chosen and chosen not in usual and not (folder / chosen).is_dir():
            raise invalid(f"{split}_split", f"a folder inside {settings.data}", repr(chosen), "check its name")
        found[split] = next((name for name in (chosen, *usual) if name and (folder / name).is_dir()), None)
    if found["train"] is None and (found["val"] or found["test"]):
        fix = "add train/, or give the folder that holds the classes themselves"
        raise invalid("data", "a train/ folder beside val/ or test/", repr(settings.data), fix)
    return found
