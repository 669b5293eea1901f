"""The headline table: ResNet-50 on ImageNet-1K as published, and the same models counted by us, in every convention."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..models import create_model
from .counting import CONVENTIONS, count_parameters, record_products
from .results import empty_table

if TYPE_CHECKING:
    from rich.table import Table

SOURCE = "Kang and Sales Rocha Neto, arXiv 2511.14137"


@dataclass(frozen=True)
class Published:
    """A row of the published table: top-1 in percent, GFLOPs as its profiler printed them, parameters in millions."""

    model: str
    name: str
    top1: float
    gflops: float
    parameters: float


@dataclass(frozen=True)
class HeadlineRow:
    """A published row, and what we count in the same model: parameters, and FLOPs by convention."""

    published: Published
    parameters: int
    flops: dict[str, int]


PUBLISHED = (
    Published("convolution", "resnet50_conv", 78.86, 8.178, 25.583),
    Published("ConvNN, all", "resnet50_convnn_all", 76.22, 10.321, 25.557),
    Published("hybrid, all", "resnet50_hybrid_all", 79.42, 10.655, 26.474),
    Published("hybrid, random 32", "resnet50_hybrid_random32", 78.98, 5.596, 26.474),
    Published("hybrid, grid 5x5", "resnet50_hybrid_grid5", 78.82, 5.576, 26.474),
)


def headline() -> list[HeadlineRow]:
    """Count the five published models at 224 x 224, without weights: on the meta device nothing is computed.

    Raises MissingExtraError without timm.
    """
    return [_row(published) for published in PUBLISHED]


def _row(published: Published) -> HeadlineRow:
    with torch.device("meta"):
        model = create_model(published.name, num_classes=1000)
    record = record_products(model, [torch.zeros(1, 3, 224, 224, device="meta")])
    flops: dict[str, int] = {
        convention: sum(record.costs(convention), Counter[str]()).total() for convention in CONVENTIONS
    }
    return HeadlineRow(published, count_parameters(model), flops)


def cut(number: float, digits: int = 3) -> str:
    """Write a number with its further digits cut off, as the published table has it.

    >>> cut(10.3219), cut(25.583592)
    ('10.321', '25.583')
    """
    return f"{math.floor(number * 10**digits) / 10**digits:.{digits}f}"


def headline_table(rows: list[HeadlineRow]) -> Table:
    """Return the rows as a rich table, published and ours side by side; raises MissingExtraError without rich."""
    caption = (
        f"theirs: published, the accuracy (top-1, %) too: {SOURCE}\n"
        "ours: the same models, not trained; GFLOPs (2 x multiply-adds) by convention\n"
        "Parameters in millions. Further digits are cut off, as theirs were."
    )
    table = empty_table(title="ResNet-50 for ImageNet-1K, one image of 224 x 224, k = 9", caption=caption)
    table.add_column("\nmodel")
    for name in ("top-1", "params", "GFLOPs"):
        table.add_column(f"theirs\n{name}", justify="right")
    for name in ("params", *CONVENTIONS[::-1]):
        table.add_column(f"ours\n{name}", justify="right")
    for row in rows:
        published = row.published
        table.add_row(
            published.model, f"{published.top1:.2f}", f"{published.parameters:.3f}", f"{published.gflops:.3f}",
            cut(row.parameters / 1e6), *(cut(row.flops[name] / 1e9) for name in CONVENTIONS[::-1]),
        )  # fmt: skip
    return table


def headline_json(rows: list[HeadlineRow]) -> dict[str, Any]:
    """Return the rows as JSON has them."""
    return {"source": SOURCE, "image": [1, 3, 224, 224], "rows": [asdict(row) for row in rows]}
