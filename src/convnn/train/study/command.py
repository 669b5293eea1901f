"""``convnn sweep`` and ``convnn compare``: what they say in the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import missing_extra
from ..settings import TrainSettings
from . import words
from .settings import CompareSettings, SweepSettings
from .sweep import finished, plan_of, sweep, write_comparison
from .trial import read_result

try:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:
    raise missing_extra("rich", "cli") from error


def run_sweep(settings: SweepSettings) -> None:
    """Run what is left of a study, show how far it is, and print the comparison; or list the runs (``--dry-run``)."""
    console = Console()
    plan, out, runs = plan_of(settings)
    if settings.dry_run:
        _list(console, runs, out)
        return
    done = sum(map(finished, runs))
    again = " Run it again to go on after an interruption."
    console.print(
        f"{escape(plan.name)}: {len(runs)} runs in {escape(str(out))}, {done} finished.{again}", soft_wrap=True
    )
    with _Bar(console, epochs=sum(run.epochs for run in runs), runs=runs) as bar:
        results = sweep(settings, watch=bar)
    print_comparison(console, results, out)


def run_compare(settings: CompareSettings) -> None:
    """Compare runs, and print the table."""
    out = Path(settings.out)
    results = write_comparison(settings.runs, out=out, baseline=settings.baseline, metric=settings.metric)
    print_comparison(Console(), results, out)


def print_comparison(console: Console, results: dict[str, Any], out: Path) -> None:
    """Print the table of a comparison, what must be said beside it, and where it is."""
    metric = results["metric"]
    table = Table(pad_edge=False)
    table.add_column("variant", overflow="fold")
    points = " (points)" if words.is_accuracy(metric) else ""
    for name in (metric.replace("_", " "), "n", f"difference{points} [95 %]", "FLOPs", "s/epoch"):
        table.add_column(name, justify="right", overflow="fold")
    for variant in results["variants"]:
        difference, verdict = words.apart(variant, metric), words.verdict(variant, metric)
        table.add_row(
            escape(variant["name"]),
            words.value(variant, metric),
            str(variant["n"]),
            escape(difference) + (f"\n[dim]{verdict}[/]" if verdict else ""),
            words.flops(variant["flops"]),
            f"{variant['seconds']:.3g}",
        )
    console.print(table)
    for line in words.notes(results):
        console.print(escape(line), soft_wrap=True)
    console.print(f"In {escape(str(out))}: comparison.html, .png, .svg and .json", soft_wrap=True)


def _list(console: Console, runs: Sequence[TrainSettings], out: Path) -> None:
    for run in runs:
        result = read_result(Path(run.out) / "result.json")
        status = str(result.get("status", "to do"))
        epochs = f", {len(result['epochs'])} of {run.epochs} epochs" if result.get("epochs") else ""
        console.print(
            f"{Path(run.out).relative_to(out)}: {status}{epochs}", markup=False, highlight=False, soft_wrap=True
        )
    left = sum(not finished(run) for run in runs)
    console.print(f"{len(runs)} runs, {left} to do, in {escape(str(out))}", soft_wrap=True)


class _Bar:
    """A line for every run that ends, and on a terminal a bar over all epochs."""

    def __init__(self, console: Console, *, epochs: int, runs: Sequence[TrainSettings]) -> None:
        self.console, self.count = console, len(runs)
        self.ended_runs = sum(map(finished, runs))
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn())
        shown = TextColumn("{task.description}")
        self.progress = Progress(*columns, shown, console=console, disable=not console.is_terminal)
        before = sum(len(read_result(Path(run.out) / "result.json").get("epochs", [])) for run in runs)
        self.task = self.progress.add_task("starting Ray", total=epochs, completed=before)
        self.started = time.monotonic()
        self.seen = {Path(run.out): len(read_result(Path(run.out) / "result.json").get("epochs", [])) for run in runs}

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def epoch(self, folder: str, entry: dict[str, Any]) -> None:
        known = next((count for path, count in self.seen.items() if str(path).endswith(f"/{folder}")), 0)
        if entry["epoch"] > known:
            accuracy = f" {100 * entry['val_accuracy']:.1f} %" if "val_accuracy" in entry else ""
            self.progress.update(
                self.task, advance=1, description=f"{escape(folder)}: epoch {entry['epoch']}{accuracy}"
            )

    def ended(self, folder: str, result: dict[str, Any], error: str) -> None:
        self.ended_runs += not error
        test = result.get("test") or {}
        words_of = f"test {100 * test['test_accuracy']:.2f} %" if "test_accuracy" in test else str(result.get("status"))
        text = f"failed: {error}" if error else words_of
        elapsed = words.seconds(time.monotonic() - self.started)
        line = f"[{self.ended_runs}/{self.count}] {folder}: {text} (after {elapsed})"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
