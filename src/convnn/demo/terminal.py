"""The demo's output in the terminal: one progress bar over all runs, then the table of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import missing_extra
from .report_parts import FAMILIES, percent

try:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Table
except ImportError as error:
    raise missing_extra("rich", "train") from error


@contextmanager
def demo_progress(console: Console, epochs: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar over all epochs of all runs; yields the function that names the run and advances it."""
    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=epochs)

        def advance(name: str, steps: int) -> None:
            bar.update(task, description=name, advance=steps)

        yield advance
        bar.update(task, description="done")


def print_summary(console: Console, results: dict[str, Any], out: Path) -> None:
    """Print the table, the identities and where the report is."""
    title = "From convolution to attention, on handwritten digits"
    table = Table(title=title, title_justify="left", caption=_caption(results), caption_justify="left")
    table.add_column("layer", no_wrap=True)
    for name in ("test accuracy", "parameters", "MFLOPs", "s/epoch"):
        table.add_column(name, justify="right", no_wrap=True)
    for family, heading in FAMILIES.items():
        table.add_section()
        table.add_row(f"[bold]{heading}[/]")
        for row in (row for row in results["rows"] if row["family"] == family):
            cost = (f"{row['parameters']:,}", f"{row['flops'] / 1e6:.2f}", f"{row['seconds']:.2f}")
            table.add_row(f"  {row['title']}", percent(row["accuracy"]), *cost)
    console.print(table)
    for identity in results["identities"]:
        mark = "[green]same[/]" if identity["holds"] else "[red]NOT THE SAME[/]"
        words = f"{identity['name']}, {identity['text']}: {identity['difference']:.1e}"
        console.print(f"{mark} {words}", soft_wrap=True, highlight=False)
    for name, what in (("report.html", "report"), ("results.json", "numbers"), ("neighbours.png", "picture")):
        console.print(f"{what + ':':9}[bold]{out / name}[/]", soft_wrap=True, highlight=False)


def _caption(results: dict[str, Any]) -> str:
    seeds = len(results["seeds"])
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    images, seconds = results["images"]["test"], results["seconds"]
    text = f"{images} test images, {spread}. FLOPs: one image, forward. Trained in {seconds:.0f} s."
    return text + (" Quick: too few images and epochs to compare the layers." if results["quick"] else "")
