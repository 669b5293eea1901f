"""The model to export, from a module, a folder of ``save_pretrained`` or a checkpoint of ``convnn train``."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from .._utils.files import to_json
from ..errors import ConvNNError, invalid
from ..models.config import config_of
from ..models.pretrained import CONFIG, from_pretrained
from ..models.registry import input_config


class Source(NamedTuple):
    """A model to export.

    Attributes:
        model: the model.
        name: of the model.
        channels: of its images.
        size: the side of its images, or None if unknown.
        notes: metadata of the exported file, each entry as JSON.
    """

    model: nn.Module
    name: str
    channels: int
    size: int | None
    notes: dict[str, str]


def load_source(model_or_checkpoint: nn.Module | str | Path) -> Source:
    """Return the model to export, loaded from a file or a folder if one is named; loading executes no code.

    Raises ConvNNError for a path that is neither a folder of ``save_pretrained`` nor a run of ``convnn train``.
    """
    if isinstance(model_or_checkpoint, nn.Module):
        return _of_model(model_or_checkpoint)
    path = Path(model_or_checkpoint)
    if path.is_dir() and (path / CONFIG).is_file():
        return _of_model(from_pretrained(path))
    if path.is_dir() and (path / "settings.yaml").is_file():
        return _of_run(path / "best.ckpt")
    if path.is_file() and path.suffix == ".ckpt" and (path.parent / "settings.yaml").is_file():
        return _of_run(path)
    expected = "a folder of save_pretrained or of convnn train, or a .ckpt file in a run's folder"
    raise invalid("checkpoint", expected, repr(str(path)), "check the path")


def _of_model(model: nn.Module) -> Source:
    try:
        architecture = config_of(model)
    except ConvNNError:
        return _of_any_model(model)
    name, stem = architecture["name"], architecture.get("stem")
    size, mean, std = input_config(name, architecture.get("image_size"), stem)
    notes = _notes(architecture=architecture, mean=mean, std=std)
    return Source(model, name, architecture.get("in_channels", 3), size, notes)


def _of_any_model(model: nn.Module) -> Source:
    """Read the input of a model from timm's configuration, or else from its first convolution."""
    cfg: Any = getattr(model, "pretrained_cfg", None)
    takes = cfg if isinstance(cfg, dict) and "input_size" in cfg else {}
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    size = int(takes["input_size"][-1]) if takes else None
    notes = _notes(mean=takes.get("mean"), std=takes.get("std"))
    return Source(model, type(model).__name__, channels, size, notes)


def _of_run(checkpoint: Path) -> Source:
    """Load a checkpoint of ``convnn train``, with the settings and classes in its folder."""
    from ..train.loading import load_checkpoint, normalization_of

    try:
        model, _, classes = load_checkpoint(checkpoint)
        normalization = normalization_of(checkpoint)
    except ConvNNError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise _unreadable(checkpoint, error) from error
    source = _of_model(model)
    return source._replace(notes={**source.notes, **_notes(classes=classes, **normalization)})


def _unreadable(checkpoint: Path, error: Exception) -> ConvNNError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    got = f"{str(checkpoint)!r} ({lines[-1].strip() if isinstance(error, RuntimeError) else lines[0]})"
    fix = "let the run finish an epoch, or restore its folder"
    return invalid("checkpoint", f"the {checkpoint.name} of a run, with its settings.yaml and result.json", got, fix)


def _notes(**values: Any) -> dict[str, str]:
    return {name: to_json(value, indent=None) for name, value in values.items() if value is not None}
