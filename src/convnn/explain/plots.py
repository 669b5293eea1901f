"""Drawings of what a layer gathers, by matplotlib on figures of their own: no global state, safe in threads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import invalid, missing_extra
from .neighbours import NeighbourMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUERY, NEAR, FAR, INK, MUTED = "#d9480f", "#0b4f9e", "#bcd9f5", "#1f2933", "#66727f"
"""Orange marks the query, blue what it gathers (dark: most alike): told apart by every kind of colour vision."""


def new_figure(width: float, height: float, *, columns: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of a size in inches with ``columns`` axes side by side; raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "train") from error
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def draw_neighbours(axes: Axes, image: Tensor, found: NeighbourMap, *, margin: int = 0) -> None:
    """Draw an image ``(H, W)`` and on it the query and what it gathers.

    Every neighbour is a blue square with its slot's number, the darker the more similar; where the layer takes a
    softmax, the darker the larger its weight. ``margin`` shows that many pixels of padding around the image. Raises ConvNNError
    for an image that is not ``(H, W)``.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    if image.dim() != 2:
        raise invalid("image", "one grey image (H, W)", tuple(image.shape), "take the mean over its channels")
    height, width = image.shape
    axes.imshow(image.numpy(), cmap="gray_r", extent=(0, width, height, 0), interpolation="nearest", alpha=0.82)
    axes.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if margin:
        outline = {"fill": False, "edgecolor": MUTED, "linewidth": 0.8}
        axes.add_patch(Rectangle((0, 0), width, height, **outline))
        axes.add_patch(Rectangle((-margin, -margin), width + 2 * margin, height + 2 * margin, linestyle=":", **outline))
    shades = LinearSegmentedColormap.from_list("near", [FAR, NEAR])
    tall, wide = height / found.grid[0], width / found.grid[1]
    numbered = len(found.places) <= 16
    for slot, ((row, column), shade) in enumerate(zip(found.places, shading(found), strict=True), 1):
        style: dict[str, Any] = {"facecolor": shades(shade), "edgecolor": "white", "linewidth": 0.9, "alpha": 0.86}
        axes.add_patch(Rectangle((column * wide, row * tall), wide, tall, **style))
        if numbered:
            size = 72 * axes.get_window_extent().height / axes.figure.dpi / (height + 2 * margin) * 0.46 * min(tall, 1.4)
            colour = "white" if shade > 0.42 else INK
            where = ((column + 0.5) * wide, (row + 0.53) * tall)
            axes.text(*where, str(slot), ha="center", va="center", color=colour, size=size, weight="bold")
    row, column = found.query
    box = Rectangle((column * wide, row * tall), wide, tall, fill=False, edgecolor=QUERY, linewidth=3.2, joinstyle="round")
    axes.add_patch(box)


def shading(found: NeighbourMap) -> list[float]:
    """Return each neighbour's shade in [0, 1]: its weight, or else its similarity, from the least to the largest.

    >>> shading(NeighbourMap((2, 2), (0, 0), ((0, 0), (0, 1), (1, 0)), (1.0, 0.5, 0.0)))
    [1.0, 0.5, 0.0]
    """
    values = found.weight or found.similarity
    low, high = min(values), max(values)
    return [1.0 if high == low else (value - low) / (high - low) for value in values]


def png(figure: Figure, *, dpi: int = 100, transparent: bool = True) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    return buffer.getvalue()


def tile(image: Tensor, found: NeighbourMap, *, margin: int = 0) -> bytes:
    """Return one square PNG of an image ``(H, W)`` with what a layer gathers for one query."""
    figure, axes = new_figure(2.4, 2.4)
    axes[0].set_position((0.01, 0.01, 0.98, 0.98))
    draw_neighbours(axes[0], image, found, margin=margin)
    return png(figure, dpi=120)


def spectrum_picture(image: Tensor, maps: Sequence[tuple[str, str, NeighbourMap]], path: Path) -> None:
    """Write the one picture: the same image ``(H, W)`` and query, and what each layer gathers, from near to alike.

    ``maps`` holds a title, a line under it and the neighbours of each layer. Raises ConvNNError when it is empty.
    """
    if not maps:
        raise invalid("maps", "at least one layer", "none", "pass (title, text, NeighbourMap) for each")
    count = len(maps)
    figure, axes = new_figure(2.75 * count, 4.0, columns=count)
    figure.subplots_adjust(left=0.012, right=0.988, bottom=0.155, top=0.83, wspace=0.05)
    for panel, (title, text, found) in zip(axes, maps, strict=True):
        draw_neighbours(panel, image, found, margin=1)
        panel.set_title(f"{title}\n", color=INK, size=14.5, weight="bold", pad=1)
        panel.text(0.5, 1.025, text, transform=panel.transAxes, ha="center", va="bottom", color=MUTED, size=10.5)
    arrow = {"arrowstyle": "<->", "color": MUTED, "linewidth": 1.2}
    figure.add_artist(_arrow((0.115, 0.075), (0.885, 0.075), arrow))
    figure.text(0.015, 0.075, "near", color=INK, size=12.5, va="center", weight="bold")
    figure.text(0.985, 0.075, "alike", color=INK, size=12.5, va="center", ha="right", weight="bold")
    words = "which pixels does the orange one gather?  1 is the first, the darker the more similar"
    back = {"facecolor": "white", "edgecolor": "none", "pad": 4}
    figure.text(0.5, 0.075, words, color=MUTED, size=11, va="center", ha="center", bbox=back)
    path.write_bytes(png(figure, dpi=150, transparent=False))


def _arrow(start: tuple[float, float], end: tuple[float, float], style: dict[str, Any]) -> Any:
    from matplotlib.patches import FancyArrowPatch

    options = {"arrowstyle": style["arrowstyle"], "color": style["color"], "linewidth": style["linewidth"]}
    return FancyArrowPatch(start, end, mutation_scale=14, **options)
