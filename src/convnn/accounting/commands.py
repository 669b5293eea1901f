"""``convnn profile`` and ``convnn table``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._utils.files import to_json
from .._utils.provenance import provenance
from ..errors import invalid, missing_extra
from .headline import headline, headline_json, headline_table
from .profiling import profile
from .settings import ProfileSettings, TableSettings

if TYPE_CHECKING:
    from rich.table import Table


def run_profile(settings: ProfileSettings) -> None:
    """Build a model and print its costs; raises ConvNNError for settings that do not fit."""
    settings.check()
    model, x = _model_and_input(settings)
    runs = 0 if settings.no_time else settings.runs
    cost = profile(model, x, convention=settings.convention, runs=runs)
    cost = dataclasses.replace(cost, model=Path(settings.model).name)
    tables = [cost.table(per_layer=True)] if settings.per_layer else []
    _show(settings.json, [*tables, cost.table()], cost.to_dict(per_layer=settings.per_layer))


def run_table(settings: TableSettings) -> None:
    """Print a table of published figures beside ours; raises MissingExtraError without timm."""
    settings.check()
    rows = headline()
    _show(settings.json, [headline_table(rows)], headline_json(rows))


def _model_and_input(settings: ProfileSettings) -> tuple[nn.Module, Tensor]:
    """Build or load the model, and make images for it; random ones, whose similarities have no ties."""
    from ..models import config_of, create_model, input_config

    device = _device(settings.device)
    if settings.is_saved:
        from ..models import from_pretrained

        model = from_pretrained(settings.model).to(device)
        config = config_of(model)
        size = input_config(config["name"], settings.image_size or config.get("image_size"), config.get("stem")).size
        channels = int(config.get("in_channels", 3))
    else:
        # Only the times depend on more than the shapes of the weights.
        with device:
            model = create_model(settings.model, image_size=settings.image_size, **settings.options())
        size, channels = input_config(settings.model, settings.image_size, settings.stem).size, 3
    x = torch.randn(settings.batch_size, channels, size, size, generator=torch.Generator().manual_seed(0))
    return model, x.to(device)


def _device(name: str) -> torch.device:
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(name):
        raise invalid("device", "a device that is there", repr(name), "use cpu")
    return torch.device(name)


def _show(path: str, tables: list[Table], values: dict[str, Any]) -> None:
    """Print the tables and write the values to a file; or print the values alone, if the file is ``-``."""
    text = to_json({**values, "provenance": provenance()})
    if path == "-":
        print(text)
        return
    if path:
        Path(path).write_text(text + "\n", encoding="utf-8")
    try:
        from rich.console import Console
    except ImportError as error:
        raise missing_extra("rich", "cli") from error
    console = Console()
    for table in tables:
        console.print(table)
