"""The page of a comparison, in the style of the demo's report: table, figure, curves, and how it was made."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..._utils import page as shared
from ..._utils.curves import Curve, line_chart
from . import words

CURVES = 10
"""Most curves that one chart shows."""


def write_page(results: Mapping[str, Any], path: Path, *, figure: str, about: Mapping[str, str] | None = None) -> None:
    """Write the page to ``path``.

    Args:
        results: what ``compare`` returns.
        path: of the HTML file.
        figure: the figure as SVG.
        about: a study's ``title``, ``source``, ``expected`` and ``notes``.
    """
    about = about or {}
    heading = html.escape(about.get("title") or "Runs compared")
    path.write_text(
        shared.page(
            title=about.get("title") or "Runs compared",
            heading=heading,
            lead=_lead(results, about),
            notice=_notice(results),
            body=_table(results) + _figure(figure) + _curves(results),
            provenance=results["provenance"],
        ),
        encoding="utf-8",
    )


def _lead(results: Mapping[str, Any], about: Mapping[str, str]) -> str:
    runs = sum(variant["n"] for variant in results["variants"])
    text = f"{_count(runs, 'run')} of {_count(len(results['variants']), 'variant')}"
    text += f", compared with <strong>{html.escape(results['baseline'])}</strong>."
    for key, name in (("source", "Source"), ("expected", "Published")):
        if about.get(key):
            text += f" {name}: {html.escape(about[key].rstrip('.'))}."
    return text


def _notice(results: Mapping[str, Any]) -> str:
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in words.notes(results))
    return f'<div class="notice" role="note">{lines}</div>' if lines else ""


def _table(results: Mapping[str, Any]) -> str:
    metric, variants = results["metric"], results["variants"]
    name = metric.replace("_", " ")
    points = ", points" if words.is_accuracy(metric) else ""
    head = ("variant", f"{name}, mean ± std", "", "n", f"difference{points} [95 %]", "", "FLOPs", "seconds an epoch",
            "a training")  # fmt: skip
    low = shared.lowest((variant["mean"], variant["std"]) for variant in variants)
    rows = []
    for variant in variants:
        accuracy = words.is_accuracy(metric)
        text = f"{variant['parameters']:,} parameters"
        cells = [
            shared.Cell(words.value(variant, metric), name),
            shared.Cell(shared.bar(variant["mean"], variant["std"], low) if accuracy else "", kind="picture"),
            shared.Cell(str(variant["n"]), "runs"),
            shared.Cell(words.apart(variant, metric), "difference"),
            shared.Cell(_verdict(variant, metric), "verdict"),
            shared.Cell(words.flops(variant["flops"]), "FLOPs"),
            shared.Cell(f"{variant['seconds']:.3g}", "seconds an epoch"),
            shared.Cell(words.seconds(variant["training_seconds"]), "a training"),
        ]
        rows.append(shared.row(variant["name"], text, cells))
    note = (
        "± is the standard deviation over the seeds. The interval is Welch's at 95 %, for each difference alone, not "
        "corrected for their number; a difference whose interval holds zero is not shown to be one. FLOPs are those of "
        "one image, 2 × the multiply-adds that are executed; seconds are those of the median training epoch."
    )
    return (
        f'<section aria-labelledby="table"><h2 id="table">Results</h2>{shared.table(head, rows)}'
        f'<p class="note">{note}</p></section>'
    )


def _verdict(variant: Mapping[str, Any], metric: str) -> str:
    kinds = {"better": "same", "worse": "differs"}
    text = words.verdict(variant, metric)
    return f'<span class="{kinds[text]}">{text}</span>' if text in kinds else text


def _figure(figure: str) -> str:
    drawing = figure[figure.index("<svg") :]
    title = "Accuracy against cost"
    return (
        f'<section aria-labelledby="cost"><h2 id="cost">{title}</h2><div class="drawing" role="img" '
        f'aria-label="{title}; the numbers are those of the table">{drawing}</div>'
        '<p class="note">A hollow mark is a single run; bars are one standard deviation.</p></section>'
    )


def _curves(results: Mapping[str, Any]) -> str:
    curves = [Curve(variant["name"], variant["curve"]) for variant in results["variants"] if variant["curve"]]
    if not curves:
        return ""
    more = f" The first {CURVES} variants." if len(curves) > CURVES else ""
    chart = line_chart(curves[:CURVES], title="Validation accuracy, mean over the seeds")
    return (
        f'<section aria-labelledby="curves"><h2 id="curves">How they learn</h2><p>Accuracy on the validation images '
        f"after each epoch; the scale is logarithmic in the errors.{more}</p>"
        f'<div class="charts">{chart}</div></section>'
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
