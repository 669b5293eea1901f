"""Line charts as inline SVG: they take the page's colours, light or dark, and stay sharp at every width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from ..errors import invalid

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40
COLOURS = 5
DASHES = ("", "7 3", "2 3", "10 3 2 3", "5 5")
"""Lines differ by dash as well as by colour, for colour-blind readers and black-and-white printers."""


class Curve(NamedTuple):
    """One line: its name, and one value an epoch."""

    name: str
    values: Sequence[float]


class _Scale(NamedTuple):
    """Coordinates of epochs and errors in the chart; errors from ``least`` to ``most`` on a logarithmic scale."""

    epochs: int
    least: float
    most: float

    def x(self, epoch: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (epoch - 1) / max(1, self.epochs - 1)

    def y(self, error: float) -> float:
        share = math.log(min(self.most, max(self.least, error)) / self.least) / math.log(self.most / self.least)
        return TOP + (HEIGHT - TOP - BOTTOM) * share


def line_chart(curves: Sequence[Curve], *, title: str) -> str:
    """Return a chart of accuracies by epoch with its legend, a ``<figure>`` in the page's colours ``--line-1``...

    The axis shows errors on a logarithmic scale, accuracy growing upwards, so that 98 and 99 % differ visibly.
    Raises ConvNNError without a curve.

    >>> "<svg" in line_chart([Curve("conv", [0.5, 0.9])], title="Accuracy")
    True
    """
    if not curves or not all(len(curve.values) for curve in curves):
        raise invalid("curves", "at least one curve with values", len(curves), "train at least one epoch")
    errors = [1 - value for curve in curves for value in curve.values]
    least = min(max(0.8 * min(errors), 0.004), 0.5)
    scale = _Scale(max(len(curve.values) for curve in curves), least, max(1.1 * max(errors), 2 * least))
    parts = [_grid(scale)]
    for number, curve in enumerate(curves):
        points = [f"{scale.x(e):.1f},{scale.y(1 - value):.1f}" for e, value in enumerate(curve.values, 1)]
        parts.append(f'<polyline class="line" {_stroke(number)} points="{" ".join(points)}"/>')
    label = f"{title}: " + "; ".join(f"{curve.name} ends at {100 * curve.values[-1]:.1f} %" for curve in curves)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}{_legend(curves)}</figure>'


def _stroke(number: int) -> str:
    return f'style="stroke:var(--line-{number % COLOURS + 1})" stroke-dasharray="{DASHES[number % len(DASHES)]}"'


def _legend(curves: Sequence[Curve]) -> str:
    items = []
    for number, curve in enumerate(curves):
        line = f'<line class="line" x1="1" y1="5" x2="33" y2="5" {_stroke(number)}/>'
        items.append(f'<li><svg viewBox="0 0 34 10" aria-hidden="true">{line}</svg>{escape(curve.name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _grid(scale: _Scale) -> str:
    parts = []
    for error in (0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005):
        if not scale.least <= error <= scale.most or (error > 0.5 and scale.least < 0.1):
            continue
        y = scale.y(error)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f"{100 * (1 - error):g}%"
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    step = max(1, math.ceil(scale.epochs / 6))
    for epoch in range(step, scale.epochs + 1, step):
        coordinates = f'x="{scale.x(epoch):.1f}" y="{HEIGHT - BOTTOM + 20}"'
        parts.append(f'<text class="tick" {coordinates} text-anchor="middle">{epoch}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 2}" text-anchor="middle">epoch</text>')
    return "".join(parts)
