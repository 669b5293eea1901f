"""From a PIL image to the tensor that a model takes: timm's transforms, as the settings say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import missing_extra
from ...models.backbones import InputConfig
from ..settings import TrainSettings
from .augment import CROP_AREA, CROP_RATIO
from .decode import as_mode

try:
    import numpy as np
    import timm.data
except ImportError as error:
    raise missing_extra(error.name or "timm", "train") from error

AUGMENTED: dict[str, dict[str, Any]] = {
    "none": {"no_aug": True},
    "light": {"scale": CROP_AREA, "ratio": CROP_RATIO, "color_jitter": 0.0},
    "strong": {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"},
}
"""Arguments of timm's training transform, by the setting ``augment``."""


@dataclass(frozen=True)
class ToTensor:
    """A PIL image of any mode to a tensor; worker processes can pickle it."""

    mode: str
    steps: Callable[[Any], torch.Tensor]

    def __call__(self, image: Any) -> torch.Tensor:
        """Return ``(channels, size, size)``."""
        return self.steps(as_mode(image, self.mode))


@dataclass(frozen=True)
class ToBytes:
    """A PIL image of any mode to a tensor of 8 bits a value; one that has the model's size already is not resized."""

    mode: str
    size: int
    steps: Callable[[Any], torch.Tensor]

    def __call__(self, image: Any) -> torch.Tensor:
        """Return ``(channels, size, size)``, uint8."""
        image = as_mode(image, self.mode)
        if image.size != (self.size, self.size):
            return self.steps(image)
        pixels = torch.from_numpy(np.array(image))
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def transform(settings: TrainSettings, *, takes: InputConfig, training: bool) -> ToTensor:
    """Return timm's transform from a PIL image to a tensor ``(channels, size, size)``, as ``settings.augment`` says."""
    return ToTensor(_mode(settings), _steps(settings, takes, training, settings.augment if training else ""))


def to_bytes(settings: TrainSettings, *, takes: InputConfig, training: bool) -> ToBytes:
    """Return what brings a PIL image to the model's size, with nothing random and without normalization."""
    steps = _steps(settings, takes, training, "none", normalize=False)
    return ToBytes(_mode(settings), takes.size, steps)


def _mode(settings: TrainSettings) -> str:
    return "RGB" if settings.channels == 3 else "L"


def _steps(
    settings: TrainSettings, takes: InputConfig, training: bool, augment: str, *, normalize: bool = True
) -> Callable[[Any], torch.Tensor]:
    takes = model_config(settings, takes)
    size = takes.size
    common: dict[str, Any] = {"input_size": (settings.channels, size, size), "is_training": training}
    common.update(mean=takes.mean, std=takes.std, normalize=normalize)
    common.update(AUGMENTED[augment] if training else {"crop_pct": 1.0 if size < 96 else None})
    made: Callable[[Any], torch.Tensor] = timm.data.create_transform(**common)
    return made


def model_config(settings: TrainSettings, takes: InputConfig) -> InputConfig:
    """Return what the model takes: a mean and a deviation for each of the run's channels, 0.5 where it names none."""
    if len(takes.mean) == settings.channels:
        return takes
    return takes._replace(mean=(0.5,) * settings.channels, std=(0.5,) * settings.channels)
