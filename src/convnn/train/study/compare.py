"""Runs compared: what each variant reached over its seeds, and its difference to a baseline with an interval."""

from __future__ import annotations

import dataclasses
import glob
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..._utils.provenance import provenance
from ...errors import invalid, missing_extra, unknown_name
from ..settings import RUNTIME_ONLY
from .trial import read_result

LEVEL = 0.95
"""Of the intervals."""
SEED = re.compile(r"seed-\d+")
PLACES = (*RUNTIME_ONLY, "seed", "seeds", "recipe")
"""Settings in which the runs of one variant may differ."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two means, and its interval; None where one of the two has a single run.

    Attributes:
        mean: the variant's mean less the baseline's.
        low: the lower end of the 95 % interval.
        high: its upper end.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def clear(self) -> bool:
        """True if there is an interval, and zero is outside it."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def compare(runs: Sequence[str], *, baseline: str = "", metric: str = "test_accuracy") -> dict[str, Any]:
    """Return what the runs of each variant reached, with the difference of each to a baseline.

    Args:
        runs: folders of runs, folders that hold runs at any depth, or glob patterns of such folders. The variant of a
            run is the name of its folder, of the folder above where that is ``seed-<n>``.
        baseline: name of a variant; the first if left out.
        metric: ``test_accuracy``, ``test_loss``, ``val_accuracy`` or ``val_loss``, of the epoch that was chosen.

    Returns:
        ``metric``, ``baseline``, ``left_out`` (why, by folder), ``provenance`` and ``variants``: name, seeds, values,
        ``n``, ``mean``, ``std`` and ``difference`` (``mean``, ``low``, ``high``), parameters, FLOPs of an image,
        seconds an epoch (median) and of a training (mean), and the mean validation accuracy of each epoch.

    Raises:
        ConvNNError: no finished run is found; runs of one variant differ in more than their seed, or have the same
            one; an unknown baseline.
        MissingExtraError: scipy is not installed.
    """
    finished, left_out = _read(runs)
    if not finished:
        why = "; ".join(f"{path}: {reason}" for path, reason in list(left_out.items())[:3]) or "none"
        raise invalid("runs", "folders with finished runs (result.json)", f"{', '.join(runs)} ({why})", "train first")
    names = _names(list(finished))
    groups: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path, result in finished.items():
        groups.setdefault(names[path], []).append((path, result))
    base = _baseline(baseline, list(groups))
    variants = [_summary(name, members, metric) for name, members in groups.items()]
    reference = next(variant for variant in variants if variant["name"] == base)
    for variant in variants:
        apart = None if variant is reference else difference(variant["values"], reference["values"])
        variant["difference"] = None if apart is None else dataclasses.asdict(apart) | {"clear": apart.clear}
    return {
        "metric": metric,
        "level": LEVEL,
        "baseline": base,
        "variants": variants,
        "left_out": left_out,
        "provenance": provenance(),
    }


def difference(values: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Return the difference of two means with its 95 % interval after Welch: variances may differ.

    >>> found = difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    >>> found.mean, round(found.low, 3), round(found.high, 3)
    (2.0, -0.267, 4.267)
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise missing_extra("scipy", "train") from error
    mean = statistics.fmean(values) - statistics.fmean(baseline)
    if min(len(values), len(baseline)) < 2:
        return Difference(mean, None, None)
    if statistics.pvariance(values) == statistics.pvariance(baseline) == 0:
        return Difference(mean, mean, mean)
    interval = stats.ttest_ind(values, baseline, equal_var=False).confidence_interval(LEVEL)
    return Difference(mean, float(interval.low), float(interval.high))


def _read(runs: Sequence[str]) -> tuple[dict[Path, dict[str, Any]], dict[str, str]]:
    """Return the finished runs, and why each of the others is left out."""
    finished: dict[Path, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for path in dict.fromkeys(_folders(runs)):
        result = read_result(path / "result.json")
        if result.get("status") == "finished" and result.get("best") and result.get("test"):
            finished[path] = result
        else:
            left_out[str(path)] = str(result.get("status") or "cannot be read")
    return finished, left_out


def _folders(runs: Sequence[str]) -> Iterator[Path]:
    """Yield the folders of runs in or under what was given."""
    for run in runs:
        found = sorted(glob.glob(run)) if any(sign in run for sign in "*?[") else [run]
        for folder in map(Path, found):
            inside = [folder] if _is_run(folder) else [path.parent for path in folder.rglob("result.json")]
            yield from sorted(filter(_is_run, inside), key=_by_number)


def _is_run(folder: Path) -> bool:
    """Return True for the folder of one run, and not for that of several seeds, which has their sum."""
    there = (folder / "settings.yaml").is_file() and (folder / "result.json").is_file()
    return there and "seeds" not in read_result(folder / "result.json")


def _by_number(path: Path) -> list[Any]:
    """Order folders as people count: k=9 before k=10."""
    return [[int(part) if part.isdigit() else part for part in re.split(r"(\d+)", step)] for step in path.parts]


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the variant of every run: the last part of its path, with what is above it where two would be alike."""
    variants = {path: path.parent if SEED.fullmatch(path.name) else path for path in paths}
    last: dict[str, set[Path]] = {}
    for variant in variants.values():
        last.setdefault(variant.name, set()).add(variant.resolve())
    return {
        path: variant.name if len(last[variant.name]) == 1 else f"{variant.resolve().parent.name}/{variant.name}"
        for path, variant in variants.items()
    }


def _baseline(given: str, names: Sequence[str]) -> str:
    if not given:
        return names[0]
    if given not in names:
        raise unknown_name("baseline", given, names)
    return given


def _summary(name: str, members: Sequence[tuple[Path, dict[str, Any]]], metric: str) -> dict[str, Any]:
    """Return one variant's numbers; raises ConvNNError where its runs are not the same but for their seeds."""
    first = members[0][1]
    seeds = [result["settings"]["seed"] for _, result in members]
    if len(set(seeds)) < len(seeds):
        got = f"{len(seeds)} runs of {name!r} with seeds {sorted(seeds)}"
        raise invalid("runs", "one run for each seed of a variant", got, "leave the other runs out")
    for path, result in members[1:]:
        for field in first["settings"].keys() - set(PLACES):
            if result["settings"].get(field) != first["settings"][field]:
                got = f"{result['settings'].get(field)!r} in {path} beside {first['settings'][field]!r}"
                raise invalid(
                    "runs", f"one {field} in all runs of {name!r}", got, "compare them as variants of their own"
                )
    results = [result for _, result in members]
    values = [float((result["test"] if metric.startswith("test") else result["best"])[metric]) for result in results]
    seconds = [epoch["seconds"] for result in results for epoch in result["epochs"]]
    return {
        "name": name,
        "n": len(values),
        "seeds": seeds,
        "values": values,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "parameters": first["parameters"],
        "flops": first["flops"],
        "seconds": statistics.median(seconds),
        "training_seconds": math.fsum(seconds) / len(results),
        "curve": _curve(results),
        "machines": sorted({result["provenance"].get("machine", "") for result in results if "provenance" in result}),
        "threads": sorted(
            {str(result["provenance"].get("threads", "")) for result in results if "provenance" in result}
        ),
    }


def _curve(results: Sequence[dict[str, Any]]) -> list[float]:
    """Return the mean validation accuracy after every validated epoch that all runs have."""
    each = [[epoch["val_accuracy"] for epoch in result["epochs"] if "val_accuracy" in epoch] for result in results]
    return [statistics.fmean(values) for values in zip(*each, strict=False)]
