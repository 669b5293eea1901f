"""The numbers of a comparison as text, the same in the terminal, the figure and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..._utils.page import percent


def is_accuracy(metric: str) -> bool:
    """Return True for a share, which is written in per cent."""
    return metric.endswith("accuracy")


def value(variant: Mapping[str, Any], metric: str) -> str:
    """Write a variant's mean and standard deviation.

    >>> value({"mean": 0.8123, "std": 0.004, "n": 3}, "test_accuracy"), value({"mean": 1.2, "std": None}, "test_loss")
    ('81.23 ± 0.40 %', '1.200')
    """
    mean, std = variant["mean"], variant["std"]
    if is_accuracy(metric):
        return percent(mean, std, digits=2)
    return f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")


def apart(variant: Mapping[str, Any], metric: str) -> str:
    """Write a variant's difference to the baseline with its interval, accuracies in percentage points.

    >>> apart({"difference": {"mean": 0.01, "low": 0.002, "high": 0.018}}, "test_accuracy")
    '+1.00 [+0.20, +1.80]'
    """
    found = variant["difference"]
    if found is None:
        return "baseline"
    scale, digits = (100, 2) if is_accuracy(metric) else (1, 3)
    mean = f"{scale * found['mean']:+.{digits}f}"
    if found["low"] is None:
        return f"{mean} (no interval: one run)"
    return f"{mean} [{scale * found['low']:+.{digits}f}, {scale * found['high']:+.{digits}f}]"


def verdict(variant: Mapping[str, Any], metric: str) -> str:
    """Say whether a difference is more than chance.

    >>> verdict({"difference": {"mean": 0.1, "low": None, "high": None, "clear": False}}, "test_accuracy")
    'unknown'
    """
    found = variant["difference"]
    if found is None:
        return ""
    if found["low"] is None:
        return "unknown"
    if not found["clear"]:
        return "no difference shown"
    return "better" if (found["mean"] > 0) == is_accuracy(metric) else "worse"


def seconds(number: float) -> str:
    """Write a time in the unit that suits it.

    >>> seconds(0.25), seconds(75), seconds(7300)
    ('0.25 s', '1.2 min', '2.0 h')
    """
    if number < 60:
        return f"{number:.2f} s" if number < 10 else f"{number:.0f} s"
    return f"{number / 60:.1f} min" if number < 3600 else f"{number / 3600:.1f} h"


def flops(number: float) -> str:
    """Write FLOPs of one image.

    >>> flops(8.18e9), flops(599_200_000)
    ('8.18 G', '599 M')
    """
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {sign}"
    return f"{number:.0f}"


def notes(results: Mapping[str, Any]) -> list[str]:
    """Return what must be said beside the numbers: single runs, runs left out, machines that differ."""
    lines = []
    single = [variant["name"] for variant in results["variants"] if variant["n"] == 1]
    if single:
        lines.append(f"One run has no spread, and its difference no interval: {_some(single)}.")
    if results["left_out"]:
        each = [f"{path} ({why})" for path, why in results["left_out"].items()]
        lines.append(f"Left out, not finished: {_some(each)}.")
    machines = {machine for variant in results["variants"] for machine in variant["machines"]}
    threads = {number for variant in results["variants"] for number in variant["threads"]}
    if len(machines) > 1 or len(threads) > 1:
        what = "different machines" if len(machines) > 1 else "different numbers of threads"
        lines.append(f"The runs were made on {what}: their seconds cannot be compared.")
    return lines


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
