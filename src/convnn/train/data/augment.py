"""Augmentation of whole batches, on any device: every change is a pure function of the images and of uniform draws.

One row of draws belongs to one image, so that an image is changed alike however a batch is divided among processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 9
"""Numbers in [0, 1) that an image takes: flip, two of the translation, two of the cutout, four of the crop."""
CROP_AREA, CROP_RATIO = (0.6, 1.0), (3 / 4, 4 / 3)
"""The limits of a random resized crop: its share of the image's area, and its width divided by its height."""


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror images ``(B, C, H, W)`` left to right where ``draws`` ``(B,)`` are below 0.5.

    >>> flip(torch.tensor([[[[1, 2]]], [[[1, 2]]]]), torch.tensor([0.4, 0.6])).flatten().tolist()
    [2, 1, 1, 2]
    """
    return torch.where((draws < 0.5).view(-1, 1, 1, 1), images.flip(-1), images)


def translate(images: Tensor, pixels: int, draws: Tensor) -> Tensor:
    """Shift images ``(B, C, H, W)`` by up to ``pixels`` in each direction, the border filled by reflection.

    It is the crop of the image's own size from the image padded by ``pixels`` on every side. ``draws`` ``(B, 2)`` are
    the vertical and the horizontal shift; ``pixels`` is below the images' height and width.

    >>> translate(torch.tensor([[[[1, 2, 3]]]]).expand(1, 1, 3, 3), 1, torch.tensor([[0.5, 0.99]]))[0, 0, 0].tolist()
    [2, 3, 2]
    """
    steps = (draws * (2 * pixels + 1)).long() - pixels
    rows = _reflected(images.shape[-2], steps[:, 0])[:, None, :, None].expand(-1, images.shape[1], -1, images.shape[-1])
    columns = _reflected(images.shape[-1], steps[:, 1])[:, None, None, :].expand(images.shape)
    return images.gather(-2, rows).gather(-1, columns)


def _reflected(size: int, steps: Tensor) -> Tensor:
    """Return, for every image, the rows or columns that stand where ``size`` of them are after the shift."""
    where = torch.arange(size, device=steps.device) + steps[:, None]
    return (size - 1) - ((size - 1) - where.abs()).abs()


def cutout(images: Tensor, pixels: int, draws: Tensor) -> Tensor:
    """Set a square of ``pixels`` x ``pixels`` to zero, centred anywhere in the image and cut off at its border.

    ``draws`` ``(B, 2)`` are the centre's row and column. Zero is the mean colour of normalized images.

    >>> cutout(torch.ones(1, 1, 3, 3), 2, torch.tensor([[0.0, 0.5]]))[0, 0].tolist()
    [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    height, width = images.shape[-2:]
    inside = [_within(size, pixels, draws[:, axis]) for axis, size in enumerate((height, width))]
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0)


def _within(size: int, pixels: int, draws: Tensor) -> Tensor:
    first = (draws * size).long() - pixels // 2
    where = torch.arange(size, device=draws.device)
    return (where >= first[:, None]) & (where < first[:, None] + pixels)


def resized_crop(images: Tensor, draws: Tensor) -> Tensor:
    """Crop a random rectangle of float images ``(B, C, H, W)`` and scale it to the images' size, bilinearly.

    ``draws`` ``(B, 4)`` are its area (60 to 100 % of the image), its ratio (3/4 to 4/3), and the row and column where
    it stands. A side that would be longer than the image's is the image's.

    >>> resized_crop(torch.ones(1, 1, 4, 4), torch.rand(1, 4)).unique().tolist()
    [1.0]
    """
    low, high = CROP_AREA
    area = low + (high - low) * draws[:, 0]
    narrow, wide = map(math.log, CROP_RATIO)
    ratio = torch.exp(narrow + (wide - narrow) * draws[:, 1])
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    affine = images.new_zeros(len(images), 2, 3)
    affine[:, 0, 0], affine[:, 1, 1] = width, height
    affine[:, 0, 2] = (1 - width) * (2 * draws[:, 3] - 1)
    affine[:, 1, 2] = (1 - height) * (2 * draws[:, 2] - 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Augment:
    """The changes that a run makes to training batches, after images were brought to the model's size.

    Attributes:
        crop: a random resized crop (``augment: light`` of resident images).
        flip: mirror half of the images.
        pad_crop: translate by up to so many pixels.
        cutout: side of the square that is set to zero.
    """

    crop: bool = False
    flip: bool = False
    pad_crop: int = 0
    cutout: int = 0

    def __bool__(self) -> bool:
        return self.crop or self.flip or self.pad_crop > 0 or self.cutout > 0

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return normalized images ``(B, C, H, W)``, changed as their ``draws`` ``(B, DRAWS)`` say."""
        if self.flip:
            images = flip(images, draws[:, 0])
        if self.pad_crop:
            images = translate(images, self.pad_crop, draws[:, 1:3])
        if self.crop:
            images = resized_crop(images, draws[:, 5:9])
        return cutout(images, self.cutout, draws[:, 3:5]) if self.cutout else images


def draw(count: int, *, share: tuple[int, int] = (0, 1)) -> Tensor:
    """Draw the rows of ``count`` images from torch's random state; ``share`` is a process's rank and their number.

    A process draws for the whole batch, of which it has every so-manieth image, and keeps its rows. The numbers are
    drawn on the CPU: a run is augmented alike on every device.

    >>> _ = torch.manual_seed(0)
    >>> whole = draw(4)
    >>> _ = torch.manual_seed(0)
    >>> torch.equal(draw(2, share=(1, 2)), whole[1::2])
    True
    """
    rank, processes = share
    return torch.rand(count * processes, DRAWS)[rank::processes]
