"""The images of a run in batches, as Lightning asks for them: in memory, or read by workers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ...errors import ConvNNError, invalid, missing_extra
from ...models.backbones import InputConfig
from ..module import Batch
from ..randomness import seed_step
from ..settings import TrainSettings
from .augment import Augment, draw
from .decode_once import decode_once, is_resident
from .inventory import skipped_line
from .loaders import Loader, ResidentLoader, StreamLoader, WorkerLoader
from .normalize import measured, some_images
from .opening import open_splits
from .options import check_image_size
from .order import IndexBatches, epoch_order
from .progress import bar
from .resident import Split, next_epoch
from .sources import Damaged, Samples
from .transforms import model_config, to_bytes, transform

try:
    from lightning.pytorch import LightningDataModule
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error


class ImageData(LightningDataModule):
    """The splits of ``settings.data``, as batches of what a model ``takes``.

    A split that exists is used: by its folder, its files, or its name. One that does not is cut from the training
    images by the seed. ``classes`` holds the names of the classes, or their numbers where the dataset has no names;
    ``folder`` what a folder of images holds, or None; ``skipped`` the images that were left out, and why. ``say``
    receives lines about what is read and left out. Raises ConvNNError for data that are in doubt; no image is read.
    """

    def __init__(
        self, settings: TrainSettings, *, takes: InputConfig, say: Callable[[str], None] | None = None
    ) -> None:
        super().__init__()
        check_image_size(settings, takes.size)
        self.settings, self._model_takes, self._say = settings, model_config(settings, takes), say
        made = functools.partial(transform, settings, takes=self._model_takes)
        opened = open_splits(settings, augmented=made(training=True), plain=made(training=False))
        self.parts, self.classes, self.folder = opened.parts, opened.classes, opened.folder
        self.skipped: dict[str, str] = dict(opened.skipped)
        self._told = len(self.skipped) if self.folder is not None else 0  # what describe() says
        self._record = opened.record
        self._held: dict[str, Split] = {}
        for split, count in self.counts().items():
            if count == 0:
                raise invalid(
                    "data", f"images in the {split} split", "none", "check the data, or the fractions cut off"
                )
        self.resident = is_resident(settings, self.parts, counts=self.counts(), size=self._model_takes.size)
        if settings.normalize == "data" and isinstance(self.parts["train"], IterableDataset):
            raise invalid("normalize", "model for a dataset that is a stream", "'data'", "use --normalize model")
        self.augment = Augment(
            crop=self.resident and settings.augment == "light",
            flip=settings.flip or (self.resident and settings.augment == "light"),
            pad_crop=settings.pad_crop,
            cutout=settings.cutout,
        )

    # what Lightning asks for

    def train_dataloader(self) -> Loader:
        """Return the training batches of the epoch that is about to start, in an order of its own."""
        return self._loader("train", epoch=next_epoch(self))

    def val_dataloader(self) -> Loader:
        """Return the validation batches."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Return the test batches."""
        return self._loader("test")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Set the random states of a training step, from which its images are augmented."""
        if self.trainer is not None and self.trainer.training:
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
            seed_step(self.settings.seed, self.trainer.current_epoch, progress.ready)
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Return the batch with its images normalized and, in training, augmented; on the device that trains."""
        images, labels = batch
        if images.dtype == torch.uint8:
            images = self._normalized(images)
        if self.trainer is not None:
            if self.trainer.training and self.augment:
                draws = draw(len(images), share=self._share()).to(images.device, non_blocking=True)
                images = self.augment(images, draws)
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels

    def teardown(self, stage: str) -> None:
        """Say which images were left out since this was last said."""
        self._report()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data: the images that were left out."""
        return {"skipped": dict(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what the checkpoint kept."""
        self.skipped.update(state_dict["skipped"])

    # what a run asks for

    def counts(self) -> dict[str, int | None]:
        """Return the number of images of each split; None for a stream of unknown length."""
        return {split: self._count(split) for split in self.parts}

    def record(self) -> dict[str, Any]:
        """Return what is kept with a run, to know on resuming it whether the data are the same."""
        return self._record

    def check_test_images(self) -> None:
        """Read the test images once: they are needed after the last epoch, when an error costs the most.

        Raises ConvNNError for one that cannot be read.
        """
        for _ in self.test_dataloader():
            pass

    @property
    def datasets(self) -> dict[str, Any]:
        """The images of each split as they are read: transformed, and augmented in training."""
        return {split: self._samples(split) for split in self.parts}

    @functools.cached_property
    def takes(self) -> InputConfig:
        """The size of the images, and the mean and the deviation by which they are normalized.

        With ``normalize: data`` these are measured when they are first needed: over all training images where they are
        in memory, else over 2,000 of them.
        """
        if self.settings.normalize == "model":
            return self._model_takes
        steps = to_bytes(self.settings, takes=self._model_takes, training=True)
        samples = Samples(self.parts["train"], steps)
        images = (
            self._hold("train").images.split(1000) if self.resident else some_images(samples, seed=self.settings.seed)
        )
        mean, std = measured(images)
        return self._model_takes._replace(mean=mean, std=std)

    # how

    def _count(self, split: str) -> int | None:
        part = self.parts[split]
        if isinstance(part, IterableDataset):
            return len(part) if hasattr(part, "__len__") else None
        if split in self._held:
            return len(self._held[split].labels)
        return len(part.source if part.indices is None else part.indices)

    def _samples(self, split: str, *, epoch: int | None = None) -> Any:
        part = self.parts[split]
        if isinstance(part, IterableDataset):
            return part
        training = split == "train"
        steps = transform(self.settings, takes=self.takes, training=training)
        random = epoch is not None and self.settings.augment != "none"
        return Samples(part, steps, seeds=(self.settings.seed, epoch or 0) if random else None)

    def _loader(self, split: str, *, epoch: int | None = None) -> Loader:
        """Make the loader of a split; with an epoch, in the order of that epoch."""
        self._report()
        samples, settings = self._samples(split, epoch=epoch), self.settings
        number = -1 if epoch is None else epoch
        if isinstance(samples, IterableDataset):
            # A stream cannot be asked whether its last batch is of one image.
            options: dict[str, Any] = {"drop_last": epoch is not None, "workers": settings.workers, "epoch": number}
            return StreamLoader(samples, settings.batch_size, **options)
        held = self._hold(split) if self.resident else None
        count = len(samples if held is None else held.labels)
        order = torch.arange(count) if epoch is None else epoch_order(count, seed=settings.seed, epoch=epoch)
        share = self._share()
        processes = share[1]
        # Batch normalization cannot take statistics of one number, and no process can of none.
        least = max(2, processes) if epoch is not None else processes
        batches = IndexBatches(order, settings.batch_size, least=least, share=share)
        if held is not None:
            return ResidentLoader(held, batches, epoch=number)
        return WorkerLoader(samples, batches, workers=settings.workers, on_damaged=self._on_damaged, epoch=number)

    def _share(self) -> tuple[int, int]:
        """Return this process's rank and the number of processes that share each batch."""
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _hold(self, split: str) -> Split:
        """Return a split as bytes in memory, decoded once."""
        if split not in self._held:
            steps = to_bytes(self.settings, takes=self._model_takes, training=split == "train")
            samples = Samples(self.parts[split], steps)
            with bar(f"Reading the {split} images", len(samples), shown=self.settings.progress) as advance:
                self._held[split] = decode_once(
                    samples, workers=self.settings.workers, on_damaged=self._on_damaged, advance=advance
                )
            self._report()
        return self._held[split]

    def _on_damaged(self, image: Damaged) -> None:
        if self.settings.bad_images == "stop":
            raise ConvNNError(image.message)
        self.skipped[image.name] = image.reason

    def _report(self) -> None:
        """Say which images were left out since this was last said."""
        new = dict(list(self.skipped.items())[self._told :])
        if new and self._say is not None:
            self._say(skipped_line(new))
        self._told = len(self.skipped)

    def _normalized(self, images: Tensor) -> Tensor:
        """Return bytes as float images of the mean and deviation that the model takes."""
        takes = self.takes
        mean, std = (torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (takes.mean, takes.std))
        return images.float().sub_(255 * mean).mul_(1 / (255 * std))
