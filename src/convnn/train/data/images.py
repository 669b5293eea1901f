"""The images of a run in batches: of a data folder, or of a dataset that timm knows by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset, default_collate

from ...errors import ConvNNError, invalid, missing_extra
from ...models.backbones import InputConfig
from ..module import mixed_seed, seed_epoch
from ..settings import TrainSettings, is_named
from .decode import as_mode, read_image
from .folders import FolderImages, ImageFile, read_folder, refuse_shared
from .named import class_names, named_record, named_splits
from .resident import next_epoch
from .splits import cut, folder_record

try:
    import timm.data
    from lightning.pytorch import LightningDataModule
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

SPLITS = ("train", "val", "test")


class ImageData(LightningDataModule):
    """The splits of ``settings.data``, transformed to what a model ``takes``.

    A split that exists is used: the folders ``train``, ``val`` and ``test``, or the names in the settings. One that
    does not is cut from the training images by the seed. ``classes`` holds the names of the classes, or their numbers
    where the dataset has no names; ``folder`` what a data folder holds, or None for a dataset that is named. Raises
    ConvNNError for data that are in doubt; no image is read.
    """

    def __init__(self, settings: TrainSettings, *, takes: InputConfig) -> None:
        super().__init__()
        self.settings = settings
        steps = {split: transform(settings, takes=takes, training=split == "train") for split in SPLITS}
        self.folder = None if is_named(settings.data) else _read_folder(settings)
        self.datasets: dict[str, Any]
        self.classes: list[str | int]
        if self.folder is None:
            self.datasets = named_splits(settings, augmented=steps["train"], plain=steps["val"])
            train = self.datasets["train"]
            self.classes = class_names(train.dataset if isinstance(train, Subset) else train)
        else:
            root, splits = Path(settings.data), self.folder.splits
            self.datasets = {split: FolderDataset(root, files, steps[split]) for split, files in splits.items()}
            self.classes = list(self.folder.classes)
        for split, dataset in self.datasets.items():
            if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
                fix = "check the data, or the fractions cut off"
                raise invalid("data", f"images in the {split} split", "none", fix)

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
        dataset, size = self.datasets[split], self.settings.batch_size
        mixed = mixed_seed(self.settings.seed, -2 if epoch is None else epoch)
        batches: dict[str, Any] = {"batch_size": size}
        if isinstance(dataset, IterableDataset):
            batches["drop_last"] = epoch is not None  # a stream cannot be asked whether its last batch is of one image
        else:
            dataset = _Guarded(dataset)
            if epoch is not None:
                order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(mixed)).tolist()
                batches = {"batch_sampler": NoBatchOfOne(order, size, False)}
        return _Loader(
            dataset,
            **batches,
            num_workers=self.settings.workers,
            generator=torch.Generator().manual_seed(
                mixed
            ),  # else every iterator would draw from the run's random state
            worker_init_fn=functools.partial(_seed_worker, mixed),
            pin_memory=torch.cuda.is_available(),
            collate_fn=_collate,
        )

    def counts(self) -> dict[str, int | None]:
        """Return the number of images of each split; None for a stream of unknown length."""
        return {split: len(d) if hasattr(d, "__len__") else None for split, d in self.datasets.items()}

    def record(self) -> dict[str, Any]:
        """Return what is kept with a run, to know on resuming it whether the data are the same."""
        if self.folder is None:
            return named_record(self.classes, self.datasets)
        files = {split: {file.name: file.size for file in found} for split, found in self.folder.splits.items()}
        return folder_record(self.folder.classes, files)

    def check_test_images(self) -> None:
        """Read the test images once: they are needed after the last epoch, when an error costs the most.

        Raises ConvNNError for one that cannot be read.
        """
        for _ in self.test_dataloader():
            pass


class FolderDataset(Dataset[Any]):
    """The images of one split of a folder; one that cannot be read is an error that names it."""

    def __init__(self, root: Path, files: list[ImageFile], image_to_tensor: ToTensor) -> None:
        self.root, self.files, self.image_to_tensor = root, files, image_to_tensor

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an image as a tensor, and its label."""
        file = self.files[index]
        image = read_image(self.root / file.name, self.image_to_tensor.mode)
        return self.image_to_tensor(image), file.label

    def filenames(self) -> list[str]:
        """Return the names of the files, relative to the folder."""
        return [file.name for file in self.files]


class NoBatchOfOne(BatchSampler):
    """Batches of ``batch_size``; a last one of a single image joins the one before it, for batch normalisation.

    >>> [len(batch) for batch in NoBatchOfOne(range(9), 4, False)], len(NoBatchOfOne(range(9), 4, False))
    ([4, 5], 2)
    """

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(super().__iter__())
        if self.batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
            last = batches.pop()
            batches[-1] = [*batches[-1], *last]
        return iter(batches)

    def __len__(self) -> int:
        count, size = len(self.sampler), self.batch_size  # type: ignore[arg-type]
        joined = size > 1 and count > size and count % size == 1 and not self.drop_last
        return super().__len__() - joined


class _Guarded(Dataset[Any]):
    """Hands errors on as values: one that is raised in a worker process arrives as the text of a traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except ConvNNError as error:
            return error


class _Loader(DataLoader[Any]):
    """Raises the errors that ``_Guarded`` handed on."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, ConvNNError):
                raise batch
            yield batch


def _collate(samples: list[Any]) -> Any:
    """Stack samples to a batch; the first error among them stands for all."""
    return next((sample for sample in samples if isinstance(sample, ConvNNError)), None) or default_collate(samples)


def _seed_worker(seed: int, worker: int) -> None:
    """Give a worker process random states of its own, made of the run's seed, the epoch and the worker's number."""
    seed_epoch(seed, worker)


def _read_folder(settings: TrainSettings) -> FolderImages:
    """List a data folder, and cut the splits that it does not have from its training images."""
    chosen = {split: getattr(settings, f"{split}_split") for split in SPLITS}
    found = read_folder(Path(settings.data), chosen)
    train = found.splits["train"]
    left, held_out = cut(len(train), [split for split in SPLITS if split not in found.splits], settings)
    chosen_of = {"train": left, **held_out}
    splits = {**found.splits, **{split: [train[index] for index in indices] for split, indices in chosen_of.items()}}
    trained = {file.label for file in splits["train"]}
    gone = [name for label, name in enumerate(found.classes) if label not in trained]
    if gone and held_out:
        got = f"none of {gone[:5]} after {' and '.join(held_out)} were cut off"
        fix = "add images, lower --val-fraction or --test-fraction, or give val/ and test/ folders"
        raise invalid("data", "training images of every class", got, fix)
    refuse_shared(splits)
    return dataclasses.replace(found, splits={split: splits[split] for split in SPLITS}, cut=tuple(held_out))


@dataclass(frozen=True)
class ToTensor:
    """A PIL image of any mode to a tensor; worker processes can pickle it."""

    mode: str
    steps: Callable[[Any], torch.Tensor]

    def __call__(self, image: Any) -> torch.Tensor:
        """Return ``(channels, size, size)``."""
        return self.steps(as_mode(image, self.mode))


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
