"""``convnn train``: what it says in the terminal before and after a run."""

from __future__ import annotations

from typing import Any

from ..errors import missing_extra
from .run import train
from .settings import TrainSettings

try:
    from rich.console import Console
    from rich.markup import escape
except ImportError as error:
    raise missing_extra("rich", "train") from error


def run_train(settings: TrainSettings) -> None:
    """Train, saying before and after what it is and what came of it."""
    console = Console()
    announce(settings, console=console)
    result = train(settings, say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
    print_result(settings, result, console=console)


def announce(settings: TrainSettings, *, console: Console | None = None) -> None:
    """Say what is about to happen, and how to go on after an interruption."""
    console = console or Console()
    verb = "Going on with" if settings.resume else "Training"
    what = (
        f"the run in {settings.out}"
        if settings.resume
        else f"{settings.model} with layer {settings.layer} on {settings.data}"
    )
    again = f"convnn train --out {escape(settings.out)} --resume"
    console.print(f"{verb} {escape(what)}. Ctrl-C stops it; then [bold]{again}[/] goes on.", soft_wrap=True)


def print_result(settings: TrainSettings, result: dict[str, Any], *, console: Console | None = None) -> None:
    """Print the chosen epoch, its accuracies, the model's cost, and where the run is."""
    console = console or Console()
    best, test = result["best"], result["test"]
    console.print(
        f"Best epoch by validation: {best['epoch']} of {len(result['epochs'])} ({100 * best['val_accuracy']:.2f} %)"
    )
    images = result["images"]["test"]
    console.print(
        f"Its test accuracy: [bold]{100 * test['test_accuracy']:.2f} %[/] on {images or 'all'} images, tested once"
    )
    console.print(f"Parameters: {result['parameters']:,}   FLOPs of one image: {result['flops']:,}")
    console.print(
        f"In {escape(settings.out)}: result.json, best.ckpt, last.ckpt, settings.yaml, splits.json", soft_wrap=True
    )
