"""Line charts as inline SVG: they take the page's colours, light or dark, and stay sharp at every width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from ..errors import invalid

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40
DASHES = ("", "7 3", "2 3", "10 3 2 3", "5 5")
"""Lines differ by dash as well as by colour, for eyes and printers that do not tell the colours apart."""


class Curve(NamedTuple):
    """One line: its name, and one value an epoch."""

    name: str
    values: Sequence[float]


def line_chart(curves: Sequence[Curve], *, title: str, ceiling: float = 1.0) -> str:
    """Return a chart of accuracies by epoch with its legend, as ``<figure>``; its colours are the page's ``--line-1``...

    The axis shows errors on a logarithmic scale, accuracy growing upwards, so that 98 and 99 % can be told apart. Raises
    ConvNNError without a curve.

    >>> "<svg" in line_chart([Curve("conv", [0.5, 0.9])], title="Accuracy")
    True
    """
    if not curves or not all(len(curve.values) for curve in curves):
        raise invalid("curves", "at least one curve with values", len(curves), "train at least one epoch")
    epochs = max(len(curve.values) for curve in curves)
    floor = 0.004
    parts = [_grid(epochs, floor)]
    for number, curve in enumerate(curves):
        points = " ".join(
            f"{_x(epoch, epochs):.1f},{_y(max(ceiling - value, floor), floor):.1f}" for epoch, value in enumerate(curve.values, 1)
        )
        dash = DASHES[number % len(DASHES)]
        parts.append(f'<polyline class="line" style="stroke:var(--line-{number + 1})" stroke-dasharray="{dash}" points="{points}"/>')
    label = f"{title}: " + "; ".join(f"{curve.name} ends at {100 * curve.values[-1]:.1f} %" for curve in curves)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}{_legend(curves)}</figure>'


def _legend(curves: Sequence[Curve]) -> str:
    items = []
    for number, curve in enumerate(curves):
        dash = DASHES[number % len(DASHES)]
        stroke = f'style="stroke:var(--line-{number + 1})" stroke-dasharray="{dash}"'
        swatch = f'<svg viewBox="0 0 34 10" aria-hidden="true"><line class="line" x1="1" y1="5" x2="33" y2="5" {stroke}/></svg>'
        items.append(f"<li>{swatch}{escape(curve.name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _grid(epochs: int, floor: float) -> str:
    parts = []
    for error in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005):
        y = _y(error, floor)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * (1 - error):g}%</text>')
    step = max(1, math.ceil(epochs / 6))
    for epoch in range(step, epochs + 1, step):
        text = f'<text class="tick" x="{_x(epoch, epochs):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{epoch}</text>'
        parts.append(text)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">epoch</text>')
    return "".join(parts)


def _x(epoch: int, epochs: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (epoch - 1) / max(1, epochs - 1)


def _y(error: float, floor: float) -> float:
    top, bottom = math.log(floor), math.log(1.0)
    return TOP + (HEIGHT - TOP - BOTTOM) * (math.log(min(1.0, error)) - top) / (bottom - top)
