"""The figure of a comparison: the result of every variant against its seconds and against its FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...explain.plots import INK, MUTED, new_figure
from . import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1b242d", "#0072b2", "#c2560a", "#a8418a", "#0a7d5a", "#8c6d00")
MARKERS = "osD^vPX*"
"""Variants differ by their mark as well as by their colour, for colour-blind readers and black-and-white printers."""
ENDINGS = ("png", "svg")


def draw(results: Mapping[str, Any], out: Path, *, name: str = "comparison") -> list[Path]:
    """Write the figure as PNG and SVG into a folder; return the two files.

    A point for the mean of each variant, a bar of one standard deviation where there are several runs. Raises
    MissingExtraError without matplotlib.
    """
    variants, metric = results["variants"], results["metric"]
    rows = max(1, -(-len(variants) // 3))
    legend = 0.24 * min(rows, 20) + 0.15
    figure, axes = new_figure(10.0, 4.0 + legend, columns=2)
    for one, (field, label) in zip(
        axes, (("seconds", "seconds an epoch"), ("flops", "FLOPs of one image")), strict=True
    ):
        _panel(one, variants, field, metric)
        one.set_xlabel(label, color=INK)
    unit = ", %" if words.is_accuracy(metric) else ""
    axes[0].set_ylabel(metric.replace("_", " ") + unit, color=INK)
    handles, labels = axes[0].get_legend_handles_labels()
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.075, right=0.985, top=1 - 0.15 / height, bottom=(legend + 0.62) / height, wspace=0.14)
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    paths = [out / f"{name}.{ending}" for ending in ENDINGS]
    for path in paths:
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _panel(axes: Axes, variants: Sequence[Mapping[str, Any]], field: str, metric: str) -> None:
    scale = 100 if words.is_accuracy(metric) else 1
    for number, variant in enumerate(variants):
        spread = None if variant["std"] is None else scale * variant["std"]
        axes.errorbar(
            variant[field], scale * variant["mean"], yerr=spread, fmt=MARKERS[number % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)], markersize=7, capsize=3, elinewidth=1.4,
            markerfacecolor="none" if variant["n"] == 1 else None,
            label=f"{variant['name']} (n = {variant['n']})",
        )  # fmt: skip
    axes.set_xscale("log")
    _ticks(axes, [variant[field] for variant in variants], field)
    axes.grid(visible=True, color="#e3e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=9, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#c4ccd4")


def _ticks(axes: Axes, values: Sequence[float], field: str) -> None:
    """Write plain numbers at 1, 2 and 5, and give values that are almost equal some room."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(values) / 1.15, max(values) * 1.15
    if high / low < 4:
        middle = (low * high) ** 0.5
        low, high = min(low, middle / 2), max(high, middle * 2)
    steps = [digit * 10.0**power for power in range(-6, 16) for digit in (1, 2, 5)]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([step for step in steps if low <= step <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    write = words.flops if field == "flops" else (lambda number: f"{number:g}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: write(number)))
