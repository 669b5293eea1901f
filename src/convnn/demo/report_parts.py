"""The pieces of the report, each a function from the demo's results to HTML."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping
from typing import Any

from .._utils import page
from .._utils.curves import Curve, line_chart

Results = Mapping[str, Any]
FAMILIES = {"cnn": "Small convolutional network", "transformer": "Small transformer"}


def percent(accuracy: Mapping[str, Any]) -> str:
    """Write an accuracy in per cent, with its spread where there is one.

    >>> percent({"mean": 0.9871, "std": 0.004}), percent({"mean": 0.5, "std": None})
    ('98.7 ± 0.4 %', '50.0 %')
    """
    return page.percent(accuracy["mean"], accuracy["std"])


def notice(results: Results) -> str:
    """Return the notice that a quick demo compares nothing; empty for a full one."""
    if not results["quick"]:
        return ""
    epochs = results["plan"]["epochs"]
    return (
        '<p class="notice" role="note"><strong>This is a quick run.</strong> '
        f"One seed, {epochs['cnn']} and {epochs['transformer']} epochs on {results['images']['train']} images: "
        "enough to see that everything works, too little to compare the layers. Run <code>convnn demo</code> without "
        "<code>--quick</code> for that.</p>"
    )


def facts(results: Results) -> str:
    """Return the headline numbers."""
    rows = _rows(results)
    single = [identity for identity in results["identities"] if "32" in identity["text"]]
    spatial = max(identity["difference"] for identity in single if identity["name"].startswith("Spatial"))
    attention = max(identity["difference"] for identity in single if "attention" in identity["name"])
    one = "largest difference between the convolutional network and the same one with spatial ConvNN layers"
    other = "largest difference between the transformer and the same one with k‑NN attention over all tokens"
    entries = [(_difference(spatial), one), (_difference(attention), other)]
    if results["quick"] or not {"conv", "hybrid"} <= rows.keys():
        count = sum(row["accuracy"]["n"] for row in results["rows"])
        entries.append((f"{results['seconds']:.0f} s", f"to train {count} networks from scratch on this machine"))
    else:
        both = f"{_mean(rows['conv'])} → {_mean(rows['hybrid'])}"
        cost = _more(rows["hybrid"], rows["conv"])
        entries.append((both, f"test accuracy from convolution to the hybrid, at {cost}"))
    items = (f"<li><b>{html.escape(number)}</b><span>{html.escape(words)}</span></li>" for number, words in entries)
    return "".join(items)


def counts(results: Results) -> str:
    """Return the number of test images and seeds behind the table."""
    seeds, images = len(results["seeds"]), results["images"]
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return f"Accuracy on {images['test']} test images: {spread}."


def table(results: Results) -> str:
    """Return the table, which a narrow screen shows as cards."""
    head = ("layer", "test accuracy", "", "parameters", "MFLOPs an image", "seconds an epoch")
    low = _low(results)
    body = []
    for family, heading in FAMILIES.items():
        members = [row for row in results["rows"] if row["family"] == family]
        if members:
            body.append(f'<tr class="family"><th scope="rowgroup" colspan="6">{heading}</th></tr>')
        for row in members:
            cells = [
                page.Cell(percent(row["accuracy"]), "test accuracy"),
                page.Cell(page.bar(row["accuracy"]["mean"], row["accuracy"]["std"], low), kind="picture"),
                page.Cell(f"{row['parameters']:,}", "parameters"),
                page.Cell(f"{row['flops'] / 1e6:.2f}", "MFLOPs an image"),
                page.Cell(f"{row['seconds']:.2f}", "seconds an epoch"),
            ]
            body.append(page.row(row["title"], row["text"], cells))
    return page.table(head, body)


def _low(results: Results) -> float:
    return page.lowest((row["accuracy"]["mean"], row["accuracy"]["std"]) for row in results["rows"])


def reading(results: Results) -> str:
    """Return the notes on how to read the table."""
    low = _low(results)
    text = (
        f"Bars run from {100 * low:.0f} to 100 %: a dot for the mean, a band for the spread. FLOPs are 2 × the "
        "multiply-adds that one forward pass really performs, the search for neighbours included. Seconds are the "
        "median training epoch, on one thread."
    )
    if not results["quick"]:
        text += (
            " A difference within the spread is no difference. The digits are centred and tiny, which suits "
            "convolution; they show how the layers behave, not which one is best."
        )
    return text


def charts(results: Results) -> str:
    """Return a chart for each network, with a curve for each of its layers."""
    drawn = []
    for family, heading in FAMILIES.items():
        members = [row for row in results["rows"] if row["family"] == family]
        curves = [Curve(row["title"], _mean_curve(row["runs"])) for row in members]
        if curves:
            drawn.append(line_chart(curves, title=f"{heading}: validation accuracy"))
    return "".join(drawn)


def _mean_curve(runs: list[Mapping[str, Any]]) -> list[float]:
    by_epoch = zip(*([epoch["val_accuracy"] for epoch in run["epochs"]] for run in runs), strict=True)
    return [statistics.fmean(values) for values in by_epoch]


def identities(results: Results) -> str:
    """Return the table of what must be equal, with the bound and the verdict."""
    head = ("the same function", "compared in", "largest difference", "allowed", "")
    body = []
    for entry in results["identities"]:
        verdict = '<span class="same">✓ same</span>' if entry["holds"] else '<span class="differs">✗ differs</span>'
        cells = [
            page.Cell(html.escape(entry["text"]), "compared in"),
            page.Cell(_difference(entry["difference"]), "largest difference"),
            page.Cell(_difference(entry["bound"]), "allowed"),
            page.Cell(verdict, "verdict"),
        ]
        body.append(page.row(entry["name"], "", cells))
    return page.table(head, body)


def trained_same(results: Results) -> str:
    """Return a comparison of convolution and spatial ConvNN after the same training."""
    rows = _rows(results)
    if not {"conv", "spatial"} <= rows.keys():
        return ""
    pairs = list(zip(rows["conv"]["runs"], rows["spatial"]["runs"], strict=True))
    equal = sum(one["test_accuracy"] == other["test_accuracy"] for one, other in pairs)
    percents = [(100 * one["test_accuracy"], 100 * other["test_accuracy"]) for one, other in pairs]
    shown = ", ".join(f"{one:.2f} and {other:.2f} %" for one, other in percents)
    verdict = "the same" if equal == len(pairs) else f"the same for {equal} of {len(pairs)} seeds"
    before = "And after the same training on the same batches, convolution and spatial ConvNN have"
    return f"{before} {verdict} test accuracy: {shown}."


def how(results: Results) -> str:
    """Return how the networks were trained and tested."""
    images, plan = results["images"], results["plan"]
    seeds = ", ".join(map(str, results["seeds"]))
    epochs, rates = plan["epochs"], plan["lr"]
    return (
        f"scikit-learn's handwritten digits, 8 × 8 pixels, shuffled once: {images['train']} images to train on, "
        f"{images['val']} to watch, {images['test']} for the test. The convolutional network has a stem, two 3 × 3 "
        "layers of width 32 at full resolution (these are swapped) and a linear head; the transformer has two blocks "
        "of width 48 with four heads on 16 patches. All layers of one network start from the same seed and see the "
        f"same batches of {plan['batch_size']}: {epochs['cnn']} and {epochs['transformer']} epochs of AdamW with "
        f"warm-up and a cosine, learning rates {rates['cnn']:g} and {rates['transformer']:g}. A run chooses nothing: "
        "the weights after the last epoch are tested, once. (The recipe itself was settled while looking at "
        "accuracies on these digits, test images among them: read differences, not records.) "
        f"{'Seeds' if len(results['seeds']) > 1 else 'Seed'}: {seeds}. The pictures show the networks of the first "
        "seed."
    )


def _rows(results: Results) -> dict[str, Mapping[str, Any]]:
    return {row["key"]: row for row in results["rows"]}


def _mean(row: Mapping[str, Any]) -> str:
    return f"{100 * row['accuracy']['mean']:.1f} %"


def _difference(value: float) -> str:
    if value == 0:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{power}" if digits == "1.0" else f"{digits} × 10{power}"


def _more(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    share = row["flops"] / base["flops"]
    return f"{share:.2f} × the FLOPs"
