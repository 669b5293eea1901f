"""One run a seed, and their sum: mean, standard deviation and number."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._utils.files import make_folder, write_json
from ..errors import invalid
from .processes import rank
from .setting_checks import seeds_of
from .settings import TrainSettings
from .settings_file import save_settings

SUMMED = ("test_accuracy", "test_top5", "test_loss")


def train_seeds(settings: TrainSettings, once: Callable[[TrainSettings, str], dict[str, Any]]) -> dict[str, Any]:
    """Run every seed of ``settings.seeds`` in a folder of its own by ``once``; return and write the sum.

    With ``resume`` or ``auto_resume`` finished seeds are read, the one that was cut off goes on, the others start.
    ``once`` receives the settings of one seed, and its name.
    """
    out = Path(settings.out)
    goes_on = settings.resume or settings.auto_resume
    if not goes_on and (out / "settings.yaml").exists() and rank() == 0:
        fix = "give --resume to go on with it, or another --out"
        raise invalid("out", "a folder without a run in it", repr(settings.out), fix)
    make_folder(out)
    if not goes_on and rank() == 0:
        save_settings(settings, out / "settings.yaml")
    runs: dict[str, dict[str, Any]] = {}
    for seed in seeds_of(settings.seeds):
        folder = out / f"seed-{seed}"
        own: dict[str, Any] = {"seeds": "", "seed": seed, "out": str(folder), "resume": False, "auto_resume": goes_on}
        runs[str(seed)] = once(dataclasses.replace(settings, **own), f"seed {seed}")
        result = sum_up(runs, finished=len(runs) == len(seeds_of(settings.seeds)))
        if rank() == 0:
            write_json(out / "result.json", result)
    return result


def sum_up(runs: dict[str, dict[str, Any]], *, finished: bool) -> dict[str, Any]:
    """Return the results of several seeds in one: what they share, and the spread of their test.

    >>> run = {"classes": ["a", "b"], "images": {"test": 9}, "parameters": 1, "flops": 2, "best": {"val_accuracy": 0.5}}
    >>> runs = {str(n): {**run, "test": {"test_accuracy": 0.25 * n}} for n in (1, 3)}
    >>> sum_up(runs, finished=True)["test"]["test_accuracy"]["mean"]
    0.5
    """
    first = next(iter(runs.values()))
    measured = {name: spread([run["test"][name] for run in runs.values()]) for name in SUMMED if name in first["test"]}
    measured["val_accuracy"] = spread([run["best"]["val_accuracy"] for run in runs.values()])
    names = ("settings", "classes", "images", "parameters", "flops", "provenance")
    shared = {name: first[name] for name in names if name in first}
    each = {seed: {"test": run["test"], "best": run["best"]} for seed, run in runs.items()}
    status = "finished" if finished else "running"
    return {**shared, "status": status, "seeds": each, "test": measured}


def spread(values: list[float]) -> dict[str, Any]:
    """Return mean, sample standard deviation (None of a single value) and number of values.

    >>> spread([1.0, 3.0])
    {'mean': 2.0, 'std': 1.4142135623730951, 'n': 2}
    """
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }
