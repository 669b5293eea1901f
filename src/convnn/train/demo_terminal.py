"""What the demo shows in the terminal: one progress bar over all runs, then the table of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import missing_extra
from .spectrum import FAMILIES

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Table
except ImportError as error:
    raise missing_extra("rich", "train") from error


@contextmanager
def demo_progress(console: Console, epochs: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar over all epochs of all runs; yields the function that names the run and moves the bar on."""
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

        def move(name: str, steps: int) -> None:
            bar.update(task, description=name, advance=steps)

        yield move
        bar.update(task, description="done")


def print_summary(console: Console, results: dict[str, Any], out: Path) -> None:
    """Print the table, the identities and where the report is."""
    seeds = len(results["seeds"])
    title = "From convolution to attention, on handwritten digits"
    table = Table(title=f"{title} (quick: too few epochs to compare)" if results["quick"] else title, title_justify="left")
    table.add_column("layer", no_wrap=True)
    for name in ("test accuracy", "parameters", "MFLOPs", "s / epoch"):
        table.add_column(name, justify="right", no_wrap=True)
    for family, heading in FAMILIES.items():
        table.add_section()
        table.add_row(f"[bold]{heading}[/]")
        for row in (row for row in results["rows"] if row["family"] == family):
            cost = (f"{row['parameters']:,}", f"{row['flops'] / 1e6:.2f}", f"{row['seconds']:.2f}")
            table.add_row(f"  {row['title']}", accuracy_text(row["accuracy"]), *cost)
    console.print(table)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    console.print(f"Accuracy on {results['images']['test']} test images, {spread}; FLOPs of one image, forward.", style="dim")
    for identity in results["identities"]:
        mark = "[green]equal[/]" if identity["holds"] else "[red]NOT EQUAL[/]"
        console.print(f"  {mark}  {identity['name']} ({identity['text']}): largest difference {identity['difference']:.1e}")
    console.print(f"Report: [bold]{out / 'report.html'}[/]   numbers: {out / 'results.json'}   picture: {out / 'neighbours.png'}")


def accuracy_text(accuracy: dict[str, Any]) -> str:
    """Write an accuracy in per cent, with its spread where there is one.

    >>> accuracy_text({"mean": 0.9871, "std": 0.004, "n": 3}), accuracy_text({"mean": 0.5, "std": None, "n": 1})
    ('98.7 ± 0.4 %', '50.0 %')
    """
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.1f}"
    return f"{100 * accuracy['mean']:.1f}{spread} %"
