"""``convnn train``: what it says before, during and after a run, to people or (``--json-lines``) to programs."""

from __future__ import annotations

import sys
from typing import Any

from .._utils.files import to_json
from ..errors import missing_extra
from .processes import rank
from .run import train
from .settings import TrainSettings

try:
    from rich.console import Console
    from rich.markup import escape
except ImportError as error:
    raise missing_extra("rich", "train") from error


def run_train(settings: TrainSettings) -> None:
    """Train, saying before, during and after what it is and what came of it; of several processes the first speaks."""
    if rank() != 0:
        train(settings)
    elif settings.json_lines:
        _json_line("start", {"out": settings.out, "resume": settings.resume})
        result = train(settings, say=lambda line: _json_line("note", {"text": line}), report=_json_line)
        _json_line("end", {name: result[name] for name in ("status", "best", "test") if name in result})
    else:
        console = Console()
        announce(settings, console=console)

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        def report(event: str, numbers: dict[str, Any]) -> None:
            if settings.progress:
                say(line_of(numbers))

        print_result(settings, train(settings, say=say, report=report), console=console)


def _json_line(event: str, numbers: dict[str, Any]) -> None:
    sys.stdout.write(to_json({"event": event, **numbers}, indent=None) + "\n")
    sys.stdout.flush()


def line_of(epoch: dict[str, Any]) -> str:
    """Return an epoch in one line.

    >>> line_of(
    ...     {
    ...         "epoch": 2,
    ...         "epochs": 9,
    ...         "train_loss": 1.25,
    ...         "train_accuracy": 0.5,
    ...         "val_loss": 1.5,
    ...         "val_accuracy": 0.25,
    ...         "lr": 0.001,
    ...         "images_per_second": 1234.5,
    ...         "seconds": 7.25,
    ...     }
    ... )
    'epoch 2/9   train 1.2500 50.00 %   val 1.5000 25.00 %   lr 0.001   1,234 images/s   7.2 s'
    """
    parts = [f"epoch {epoch['epoch']}/{epoch['epochs']}"]
    stages = [stage for stage in ("train", "val") if f"{stage}_loss" in epoch]
    parts += [f"{stage} {epoch[f'{stage}_loss']:.4f} {100 * epoch[f'{stage}_accuracy']:.2f} %" for stage in stages]
    parts += [f"lr {epoch['lr']:.3g}", f"{epoch['images_per_second']:,.0f} images/s", f"{epoch['seconds']:.1f} s"]
    return "   ".join(parts)


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
    """Print the chosen epoch, its accuracies, the model's cost, and where the run is; of several seeds their mean."""
    console = console or Console()
    if "seeds" in result:
        accuracy = result["test"]["test_accuracy"]
        spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
        console.print(f"Test accuracy: [bold]{100 * accuracy['mean']:.2f}{spread} %[/] (n = {accuracy['n']} seeds)")
        console.print(f"In {escape(settings.out)}: result.json, and one folder a seed", soft_wrap=True)
        return
    best, test = result["best"], result["test"]
    console.print(
        f"Best epoch by validation: {best['epoch']} of {len(result['epochs'])} ({100 * best['val_accuracy']:.2f} %)"
    )
    images = result["images"]["test"]
    console.print(
        f"Its test accuracy: [bold]{100 * test['test_accuracy']:.2f} %[/] on {images or 'all'} images, tested once"
    )
    console.print(f"Parameters: {result['parameters']:,}   FLOPs of one image: {result['flops']:,}")
    files = "result.json, metrics.csv, best.ckpt, last.ckpt, settings.yaml, splits.json"
    console.print(f"In {escape(settings.out)}: {files}", soft_wrap=True)
