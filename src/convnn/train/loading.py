"""Models of runs: built from settings, and loaded from checkpoints, of which nothing is executed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import invalid
from ..models import CONFIGURATIONS, create_model
from ..nn.layer import NeighborLayer
from .checkpoint import BEST, read_checkpoint
from .settings import TrainSettings
from .settings_file import load_settings

AVERAGED, TRAINED = "average.module.", "model."
"""What the names of weights begin with in a checkpoint: of their moving average, and of the weights themselves."""


DECIDED = {"name", "num_classes", "in_channels", "in_chans", "image_size", "img_size", "pretrained", "layer"}
"""Keywords of ``create_model`` that the data or other settings decide."""


def build_model(settings: TrainSettings, *, classes: int) -> nn.Module:
    """Build the settings' model for ``classes`` classes, its layers swapped; random weights are drawn here.

    Raises ConvNNError when the model, the layer, the image size or the options do not go together.
    """
    fields = ("k", "branch_ratio", "candidates", "similarity", "stem", "init")  # a named configuration has its own
    given: dict[str, Any] = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(TrainSettings)
        if field.name in fields and getattr(settings, field.name) != field.default
    }
    if settings.model not in CONFIGURATIONS:
        given["layer"] = settings.layer
    for field_name, option in (("dropout", "drop_rate"), ("drop_path", "drop_path_rate")):
        if getattr(settings, field_name):
            given[option] = getattr(settings, field_name)
    if settings.weights:
        given["pretrained_cfg_overlay"] = {"file": settings.weights}
    more = dict(settings.model_options or {})
    if taken := sorted(more.keys() & (given.keys() | DECIDED | set(fields))):
        expected = "keywords of create_model that are no options themselves"
        raise invalid(
            "model_options", expected, repr(taken[0]), f"give --{taken[0].replace('_', '-')}, or leave it out"
        )
    return number_layers(_created(settings, {**given, **more}, classes))


def number_layers(model: nn.Module) -> nn.Module:
    """Number the layers that draw candidates: an evaluation then depends on the run, not on models built before it."""
    for number, layer in enumerate(part for part in model.modules() if isinstance(part, NeighborLayer)):
        layer.eval_seed = number
    return model


def _created(settings: TrainSettings, given: dict[str, Any], classes: int) -> nn.Module:
    from ..errors import ConvNNError

    try:
        return create_model(
            settings.model,
            num_classes=classes,
            in_channels=settings.channels,
            image_size=settings.image_size,
            pretrained=settings.pretrained or bool(settings.weights),
            **given,
        )
    except ConvNNError as error:
        unknown = {"'drop_rate'": "dropout", "'drop_path_rate'": "drop_path"}
        field = next((field for option, field in unknown.items() if f"got {option}" in str(error)), None)
        if field is None:
            raise
        got = f"{getattr(settings, field)} for {settings.model}, which has none"
        raise invalid(field, "0 for this model", got, "leave it out, or choose another model") from error


def load_run(out: str | Path) -> tuple[nn.Module, TrainSettings, list[str]]:
    """Return the best model of a finished or running run, in eval mode, its settings and the names of its classes.

    Raises ConvNNError when ``out`` holds no run with a finished epoch, or a checkpoint that was altered.
    """
    best = Path(out) / BEST
    load_settings(best.with_name("settings.yaml"))
    if not best.is_file():
        raise invalid("out", "a run with a finished epoch (best.ckpt in it)", repr(str(out)), "let it train first")
    return load_checkpoint(best)


def normalization_of(checkpoint: Path) -> dict[str, list[float]]:
    """Return the mean and the standard deviation by which a run normalized its images, a number a channel."""
    result = json.loads(checkpoint.with_name("result.json").read_text(encoding="utf-8"))
    return {name: [float(number) for number in result["input"][name]] for name in ("mean", "std")}


def load_checkpoint(checkpoint: Path) -> tuple[nn.Module, TrainSettings, list[str]]:
    """Return what ``load_run`` returns, of any checkpoint in the folder of a run; nothing of it is executed."""
    settings = load_settings(checkpoint.with_name("settings.yaml"))
    result = json.loads(checkpoint.with_name("result.json").read_text(encoding="utf-8"))
    classes = [str(name) for name in result["classes"]]
    saved = read_checkpoint(checkpoint)["state_dict"]
    kept = AVERAGED if any(name.startswith(AVERAGED) for name in saved) else TRAINED
    model = build_model(dataclasses.replace(settings, pretrained=False, weights=""), classes=len(classes))
    model.load_state_dict({name.removeprefix(kept): w for name, w in saved.items() if name.startswith(kept)})
    return model.eval(), settings, classes
