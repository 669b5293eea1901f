"""Images by number, wherever they are kept: a source reads one of them and knows the labels of all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import ConvNNError
from ..randomness import seed_step
from .decode import read_image, unreadable
from .folders import ImageFile
from .transforms import ToBytes, ToTensor


class Source(ABC):
    """Images of one origin.

    Attributes:
        labels: of all images, in order; None where only reading an image tells its label.
        fingerprint: what tells these images from others, if anything cheap does.
    """

    labels: Tensor | None = None
    fingerprint: str | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of an image in errors."""

    @abstractmethod
    def read(self, index: int, mode: str) -> tuple[Any, int]:
        """Return a PIL image in ``mode`` (``"RGB"`` or ``"L"``), and its label; raises ConvNNError if it is damaged."""


class Files(Source):
    """The images of one split of a folder."""

    def __init__(self, root: Path, files: Sequence[ImageFile]) -> None:
        self.root, self.files = root, files
        self.labels = torch.tensor([file.label for file in files], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the file's name, relative to the folder."""
        return self.files[index].name

    def read(self, index: int, mode: str) -> tuple[Any, int]:
        """Return the image of a file, and its label."""
        file = self.files[index]
        return read_image(self.root / file.name, mode), file.label


class Part(NamedTuple):
    """The images of a split: those of a source that ``indices`` name, or all."""

    source: Source
    indices: Tensor | None = None

    def labels(self) -> Tensor | None:
        """Return the labels, where the source knows them."""
        labels = self.source.labels
        return labels if labels is None or self.indices is None else labels[self.indices]


class Samples(Dataset[Any]):
    """The images of a split as tensors, with their labels.

    With ``seeds``, a seed and an epoch, every image has random states of its own, made of these and of its number in
    the source: its augmentation depends neither on the worker that reads it nor on the images read before.
    """

    def __init__(self, part: Part, to_tensor: ToTensor | ToBytes, *, seeds: tuple[int, int] | None = None) -> None:
        self.part, self.to_tensor, self.seeds = part, to_tensor, seeds

    def __len__(self) -> int:
        source, indices = self.part
        return len(source if indices is None else indices)

    def number(self, position: int) -> int:
        """Return the number in the source of the image at a position in the split."""
        return position if self.part.indices is None else int(self.part.indices[position])

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        """Return an image as a tensor, and its label; raises ConvNNError, with its name, for one that is damaged."""
        number = self.number(position)
        image, label = self.part.source.read(number, self.to_tensor.mode)
        if self.seeds is not None:
            seed_step(*self.seeds, number)
        try:
            return self.to_tensor(image), label
        except (ValueError, RuntimeError, OSError, ArithmeticError) as error:
            raise unreadable(repr(self.part.source.name(number)), error) from error

    def filenames(self) -> list[str]:
        """Return the names of the images."""
        return [self.part.source.name(self.number(position)) for position in range(len(self))]


class Damaged(NamedTuple):
    """An image that cannot be read: its name in the data, why, and the error's message."""

    name: str
    reason: str
    message: str


class Guarded(Dataset[Any]):
    """Hands errors on as values: one that is raised in a worker process arrives as the text of a traceback."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> Any:
        try:
            return self.samples[position]
        except ConvNNError as error:
            name = self.samples.part.source.name(self.samples.number(position))
            return Damaged(name, getattr(error, "reason", "too large"), str(error))
