"""Pages of results: one self-contained HTML file, and the tables, bars and numbers that such pages share."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """A cell of a table: its HTML, the column's words on a narrow screen, and a class."""

    content: str
    label: str = ""
    kind: str = ""


def page(*, title: str, heading: str, lead: str, body: str, provenance: Mapping[str, Any], notice: str = "") -> str:
    """Return a page, with the style in it; all but ``title`` and the provenance is HTML.

    >>> "<h1>One</h1>" in page(title="1", heading="One", lead="", body="", provenance={})
    True
    """
    here = Path(__file__)
    made = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in provenance.items()
    )
    return Template(here.with_name("page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        style=here.with_name("page.css").read_text(encoding="utf-8").rstrip(),
        heading=heading,
        lead=lead,
        notice=notice,
        body=body,
        provenance=made,
    )


def table(head: Sequence[str], rows: Iterable[str]) -> str:
    """Return a table, which a narrow screen shows as cards."""
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    return f'<table class="cards"><thead><tr>{names}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def row(name: str, text: str, cells: Iterable[Cell]) -> str:
    """Return a row of a table; ``name`` and the smaller ``text`` under it are plain text.

    >>> row("conv", "", [Cell("1", "parameters")])
    '<tr><th scope="row">conv</th><td data-label="parameters">1</td></tr>'
    """
    small = f"<small>{html.escape(text)}</small>" if text else ""
    kinds = [(cell, f' class="{cell.kind}"' if cell.kind else f' data-label="{cell.label}"') for cell in cells]
    columns = "".join(f"<td{kind}>{cell.content}</td>" for cell, kind in kinds)
    return f'<tr><th scope="row">{html.escape(name)}{small}</th>{columns}</tr>'


def percent(mean: float, std: float | None, *, digits: int = 1) -> str:
    """Write an accuracy in per cent, with its spread where there is one.

    >>> percent(0.9871, 0.004), percent(0.5, None)
    ('98.7 ± 0.4 %', '50.0 %')
    """
    spread = "" if std is None else f" ± {100 * std:.{digits}f}"
    return f"{100 * mean:.{digits}f}{spread} %"


def lowest(accuracies: Iterable[tuple[float, float | None]]) -> float:
    """Return the left end of accuracy bars: a round number below everything that is shown.

    >>> lowest([(0.93, 0.01), (0.97, None)])
    0.9
    """
    least = min(mean - (std or 0.0) for mean, std in accuracies)
    return max(0.0, int(least * 20 - 1e-9) / 20)


def bar(mean: float, std: float | None, low: float) -> str:
    """Return a bar from ``low`` to 1, a dot for the mean and a band for the spread, as inline SVG."""

    def x(value: float) -> float:
        return 6 + 138 * min(1.0, max(0.0, (value - low) / max(1e-9, 1 - low)))

    band = (mean - std, mean + std) if std else None
    spread = f'<line class="spread" x1="{x(band[0]):.1f}" x2="{x(band[1]):.1f}" y1="6" y2="6"/>' if band else ""
    track = '<line class="track" x1="6" x2="144" y1="6" y2="6"/>'
    dot = f'<circle class="dot" cx="{x(mean):.1f}" cy="6" r="4.5"/>'
    return f'<svg class="bar" viewBox="0 0 150 12" aria-hidden="true">{track}{spread}{dot}</svg>'
