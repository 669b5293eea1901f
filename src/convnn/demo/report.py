"""The demo's report: one self-contained page, with its table, curves and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor, nn

from .._utils import page as shared
from ..explain.plots import spectrum_picture
from . import report_parts as parts
from .gallery import Panel, choose_digits, choose_query, gathered, tiles_html

LEAD = (
    "A convolution mixes the pixels that are <strong>near</strong>. Attention mixes those that are "
    "<strong>alike</strong>. Both do the same thing: every position gathers some others and mixes them. ConvNN is that "
    "one operation, and what counts as a neighbour is a choice."
)
PICTURE = ("conv", "blend", "convnn", "knn")
"""The experiments of the one picture of the README, from near to alike."""


def write_report(
    results: Mapping[str, Any], *, models: Mapping[str, nn.Module], images: Tensor, labels: Tensor, out: Path
) -> None:
    """Write ``report.html`` and ``neighbours.png`` to ``out``.

    Args:
        results: what ``results.json`` holds.
        models: the trained networks by the key of their row.
        images: the test images ``(n, 1, H, W)``.
        labels: their digits ``(n,)``.
        out: an existing folder.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows = {row["key"]: row for row in results["rows"]}
    selected = choose_digits(images, labels)[: 1 if results["quick"] else None]
    galleries = [gathered(models, rows, images[i], choose_query(images[i, 0])) for i in selected]
    captions = [f"A test image of a {int(labels[i])}" for i in selected]
    (out / "report.html").write_text(page(results, tiles_html(galleries, captions)), encoding="utf-8")
    picture = [panel for key in PICTURE for panel in galleries[0] if panel.key == key]
    spectrum_picture(galleries[0][0].image, [_words(panel) for panel in picture], out / "neighbours.png")


def _words(panel: Panel) -> tuple[str, str, Any]:
    return panel.title, panel.text, panel.neighbors


def page(results: Mapping[str, Any], pictures: str) -> str:
    """Return the page for a demo's results, with the pictures' HTML put in."""
    body = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).substitute(
        facts=parts.facts(results),
        pictures=pictures,
        padding_key='<li><i class="pad"></i>zero padding around the image</li>' if "padding" in pictures else "",
        counts=parts.counts(results),
        table=parts.table(results),
        reading=parts.reading(results),
        curve_words=f", mean of {len(results['seeds'])} seeds" if len(results["seeds"]) > 1 else "",
        charts=parts.charts(results),
        compared=results["compared"],
        identities=parts.identities(results),
        trained_same=parts.trained_same(results),
        how=parts.how(results),
    )
    return shared.page(
        title="From convolution to attention: the ConvNN demo",
        heading="From convolution to attention, with one operator",
        lead=LEAD,
        notice=parts.notice(results),
        body=body,
        provenance=results["provenance"],
    )
