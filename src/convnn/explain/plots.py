"""Plots of a layer's neighbours by matplotlib, without its global state: safe in threads."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import invalid, missing_extra
from .neighbors import NeighborMap, RowCol

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUERY, NEAR, FAR, INK, MUTED = "#d9480f", "#0b4f9e", "#9cc6ee", "#1f2933", "#66727f"
"""Orange marks the query, blue its neighbours (dark: most similar): distinct for every kind of colour vision."""


def new_figure(width: float, height: float, *, columns: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of a size in inches with ``columns`` axes side by side; raises MissingExtraError without
    matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "train") from error
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def draw_neighbors(axes: Axes, image: Tensor, near: NeighborMap, *, margin: int = 0) -> None:
    """Draw an image ``(H, W)`` with the query and its neighbours.

    Every neighbour has a blue frame and its slot's number, the darker the more similar; where the layer takes a
    softmax, the darker the larger its weight. ``margin`` shows that many pixels of padding around the image. Raises
    ConvNNError for an image that is not ``(H, W)``.
    """
    if image.dim() != 2:
        raise invalid("image", "one grey image (H, W)", tuple(image.shape), "take the mean over its channels")
    height, width = image.shape
    axes.imshow(image.numpy(), cmap="gray_r", extent=(0, width, height, 0), interpolation="nearest", alpha=0.85)
    axes.set(
        xlim=(-margin - 0.1, width + margin + 0.1), ylim=(height + margin + 0.1, -margin - 0.1), xticks=[], yticks=[]
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    _outline(axes, (height, width), margin)
    cell = (height / near.grid[0], width / near.grid[1])
    point = 72 * axes.get_window_extent().height / axes.figure.dpi / (height + 2 * margin + 0.2)
    for slot, (position, shade) in enumerate(zip(near.positions, shading(near), strict=True), 1):
        _mark(axes, position, cell, shade=shade, number=str(slot) if len(near.positions) <= 25 else "", point=point)
    _frame(axes, near.query, cell, color=QUERY, width=0.115 * point)


def _outline(axes: Axes, size: tuple[int, int], margin: int) -> None:
    """Draw the border of the image, and around it the padding's."""
    from matplotlib.patches import Rectangle

    style: dict[str, Any] = {"fill": False, "edgecolor": MUTED, "linewidth": 0.8}
    axes.add_patch(Rectangle((0, 0), size[1], size[0], **style))
    if margin:
        outer = Rectangle(
            (-margin, -margin), size[1] + 2 * margin, size[0] + 2 * margin, linestyle=(0, (1, 2)), **style
        )
        axes.add_patch(outer)


def _mark(axes: Axes, position: RowCol, cell: tuple[float, float], *, shade: float, number: str, point: float) -> None:
    """Mark a neighbour: a tint over its pixels, which stay visible, and its slot's number on a disc."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Circle, Rectangle

    color = LinearSegmentedColormap.from_list("near", [FAR, NEAR])(shade)
    tall, wide = cell
    corner = (position[1] * wide, position[0] * tall)
    axes.add_patch(Rectangle(corner, wide, tall, facecolor=color, alpha=0.45, edgecolor="none"))
    _frame(axes, position, cell, color=color, width=0.085 * point)
    if number:
        middle = (corner[0] + wide / 2, corner[1] + tall / 2)
        axes.add_patch(Circle(middle, 0.335, facecolor=color, edgecolor="none", zorder=3))
        ink = "white" if shade > 0.42 else INK
        center = (middle[0], middle[1] + 0.02)
        size = point * (0.44 if len(number) == 1 else 0.38)
        axes.text(*center, number, ha="center", va="center_baseline", color=ink, size=size, weight="bold", zorder=4)


def _frame(axes: Axes, position: RowCol, cell: tuple[float, float], *, color: Any, width: float) -> None:
    """Draw a frame just inside a position's pixels, ``width`` points wide."""
    from matplotlib.patches import Rectangle

    tall, wide = cell
    inset = 0.07
    corner = (position[1] * wide + inset, position[0] * tall + inset)
    size = (wide - 2 * inset, tall - 2 * inset)
    style: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": width, "joinstyle": "round"}
    axes.add_patch(Rectangle(corner, *size, zorder=2 if color != QUERY else 5, **style))


def shading(near: NeighborMap) -> list[float]:
    """Return each neighbour's shade in [0, 1]: its weight, or else its similarity, from the least to the largest.

    The query, which is most similar to itself, is left out of the range: otherwise the others would look the same.

    >>> shading(NeighborMap((2, 2), (0, 0), ((0, 0), (0, 1), (1, 0), (1, 1)), (9.0, 1.0, 0.5, 0.0)))
    [1.0, 1.0, 0.5, 0.0]
    """
    values = near.weight or near.similarity
    others = [value for value, position in zip(values, near.positions, strict=True) if position != near.query] or list(
        values
    )
    low, high = min(others), max(others)
    return [1.0 if high == low else min(1.0, max(0.0, (value - low) / (high - low))) for value in values]


def png(figure: Figure, *, dpi: int = 100, transparent: bool = True) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=transparent, metadata={"Software": None})
    return buffer.getvalue()


def tile(image: Tensor, near: NeighborMap, *, margin: int = 0) -> bytes:
    """Return one square PNG of an image ``(H, W)`` with one query's neighbours."""
    figure, axes = new_figure(2.4, 2.4)
    axes[0].set_position((0.01, 0.01, 0.98, 0.98))
    draw_neighbors(axes[0], image, near, margin=margin)
    return png(figure, dpi=120)


def spectrum_picture(image: Tensor, maps: Sequence[tuple[str, str, NeighborMap]], path: Path) -> None:
    """Write the one picture: the same image ``(H, W)`` and query, and each layer's neighbours, from near to similar.

    ``maps`` holds a title, a line under it and the neighbours of each layer. Raises ConvNNError when it is empty.
    """
    if not maps:
        raise invalid("maps", "at least one layer", "none", "pass (title, text, NeighborMap) for each")
    count = len(maps)
    figure, axes = new_figure(2.75 * count, 4.0, columns=count)
    figure.subplots_adjust(left=0.012, right=0.988, bottom=0.145, top=0.84, wspace=0.06)
    for panel, (title, text, near) in zip(axes, maps, strict=True):
        draw_neighbors(panel, image, near, margin=1)
        panel.set_title(f"{title}\n", color=INK, size=14.5, weight="bold", pad=1)
        panel.text(0.5, 1.025, text, transform=panel.transAxes, ha="center", va="bottom", color=MUTED, size=10.5)
    figure.add_artist(_arrow((0.115, 0.075), (0.885, 0.075)))
    figure.text(0.015, 0.075, "near", color=INK, size=12.5, va="center", weight="bold")
    figure.text(0.985, 0.075, "alike", color=INK, size=12.5, va="center", ha="right", weight="bold")
    words = "which pixels does the orange one gather?  1 is the first, the darker the more similar"
    back = {"facecolor": "white", "edgecolor": "none", "pad": 4}
    figure.text(0.5, 0.075, words, color=MUTED, size=11, va="center", ha="center", bbox=back)
    path.write_bytes(png(figure, dpi=150, transparent=False))


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> Any:
    from matplotlib.patches import FancyArrowPatch

    return FancyArrowPatch(start, end, arrowstyle="<->", color=MUTED, linewidth=1.2, mutation_scale=14)
