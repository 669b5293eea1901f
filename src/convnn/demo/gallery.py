"""The report's pictures: the neighbours of one position in some test images, for every trained network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..explain.neighbors import NeighborMap, RowCol, neighbor_maps
from ..explain.plots import tile

DIGITS = (3, 8, 0)


@dataclass(frozen=True)
class Panel:
    """One picture: the network's key and texts, the image ``(H, W)``, and its neighbours."""

    key: str
    title: str
    text: str
    image: Tensor
    neighbors: NeighborMap


def choose_digits(images: Tensor, labels: Tensor, *, digits: Sequence[int] = DIGITS) -> list[int]:
    """Return the first test image of each digit; the first images of the split if there is none.

    >>> choose_digits(torch.zeros(3, 1, 8, 8), torch.tensor([8, 3, 0]))
    [1, 0, 2]
    """
    first = [int((labels == digit).nonzero()[0]) for digit in digits if bool((labels == digit).any())]
    return first or list(range(min(len(images), len(digits))))


def choose_query(image: Tensor) -> RowCol:
    """Return the darkest pixel of an image ``(H, W)``, the one nearest to the middle if several are equally dark.

    >>> choose_query(torch.eye(5))
    (2, 2)
    """
    height, width = image.shape
    rows = torch.arange(height).unsqueeze(1) - (height - 1) / 2
    columns = torch.arange(width).unsqueeze(0) - (width - 1) / 2
    score = image - 1e-3 * (rows.square() + columns.square()).to(image.dtype) * float(image.max() - image.min() + 1e-9)
    return divmod(int(score.argmax()), width)


def gathered(
    models: Mapping[str, nn.Module], rows: Mapping[str, Mapping[str, Any]], image: Tensor, query: RowCol
) -> list[Panel]:
    """Return a panel for every network in ``rows``: the neighbours of a pixel in its last layer that gathers any."""
    panels = []
    for key, row in rows.items():
        maps = neighbor_maps(models[key], image, query)
        panels.append(Panel(key, row["title"], row["text"], image[0], list(maps.values())[-1]))
    return panels


def tiles_html(galleries: Sequence[Sequence[Panel]], captions: Sequence[str]) -> str:
    """Return the HTML of the pictures: a group for every image (the first one open), a tile for every network."""
    groups: list[str] = []
    for panels, caption in zip(galleries, captions, strict=True):
        tiles = "".join(_tile(panel, padded=not all(all(p.neighbors.inside()) for p in panels)) for panel in panels)
        opened = " open" if not groups else ""
        summary = f"<summary>{html.escape(caption)}</summary>"
        groups.append(f'<details class="digit"{opened}>{summary}<div class="tiles">{tiles}</div></details>')
    return "".join(groups)


def _tile(panel: Panel, *, padded: bool) -> str:
    outside = panel.neighbors.inside().count(False)
    margin = int(padded and not panel.neighbors.weight)
    data = base64.b64encode(tile(panel.image, panel.neighbors, margin=margin)).decode()
    words = f"{panel.title}: query at row {panel.neighbors.query[0]}, column {panel.neighbors.query[1]}; gathers "
    words += ", ".join(f"({row}, {column})" for row, column in panel.neighbors.positions[:9])
    note = f"{panel.text}" + (f"; {outside} in the padding" if outside and panel.key != "conv" else "")
    caption = f"<b>{html.escape(panel.title)}</b>{html.escape(note)}"
    picture = (
        f'<img src="data:image/png;base64,{data}" width="288" height="288" loading="lazy" alt="{html.escape(words)}">'
    )
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
