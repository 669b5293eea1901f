"""``convnn demo``: the same small networks on real digits, from convolution to attention, in minutes."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._utils.cores import available_cores
from .._utils.files import make_folder, write_json
from .._utils.provenance import provenance
from ..accounting import count_flops, count_parameters
from ..errors import missing_extra
from .digits import load_digits_splits
from .settings import DemoSettings
from .spectrum import EXPERIMENTS, FULL, QUICK, Experiment, TrainingPlan, build, identities
from .training import Task, load_weights, train_experiment
from .workers import run_tasks

try:
    from rich.console import Console
except ImportError as error:
    raise missing_extra(error.name or "rich", "train") from error

COMPARED = 100
"""Test images for the comparison of networks that must be equal."""


def run_demo(settings: DemoSettings, *, console: Console | None = None) -> dict[str, Any]:
    """Run every experiment, check the identities, and write results, pictures and the report to ``settings.out``.

    Returns what ``results.json`` holds; it is written after every run, so that an interrupted demo leaves what it had.
    Without ``quick`` the runs are shared among processes, one a core. Raises ConvNNError for wrong settings,
    MissingExtraError for an optional package that is not there.
    """
    from .report import write_report
    from .terminal import demo_progress, print_summary

    settings.check()
    console = console or Console()
    out = Path(settings.out)
    make_folder(out)
    plan = QUICK if settings.quick else FULL
    tasks = [Task(experiment.key, seed, settings.seed, plan) for seed in _seeds(settings) for experiment in EXPERIMENTS]
    workers = 1 if settings.quick else min(available_cores(), 4)
    results = _start(settings, plan, workers)
    runs: dict[str, dict[int, dict[str, Any]]] = {experiment.key: {} for experiment in EXPERIMENTS}
    models: dict[str, nn.Module] = {}
    started = time.perf_counter()
    epochs = sum(plan.epochs[experiment.family] for experiment in EXPERIMENTS) * len(results["seeds"])
    with demo_progress(console, epochs) as report:
        for position, (run, weights) in run_tasks(train_experiment, tasks, report, workers=workers):
            key, seed = tasks[position].key, tasks[position].seed
            runs[key][seed] = run
            if seed == settings.seed:
                models[key] = load_weights(build(_experiment(key), seed=seed), weights)
            done = [experiment for experiment in EXPERIMENTS if experiment.key in models]
            results["rows"] = [row(s, [runs[s.key][n] for n in sorted(runs[s.key])], models[s.key]) for s in done]
            results["seconds"] = time.perf_counter() - started
            write_json(out / "results.json", results)
    results["status"] = "finished"
    write_json(out / "results.json", results)
    test = load_digits_splits(settings.seed, images=plan.images)["test"]
    write_report(results, models=models, images=test.images, labels=test.labels, out=out)
    print_summary(console, results, out)
    return results


def _start(settings: DemoSettings, plan: TrainingPlan, workers: int) -> dict[str, Any]:
    """Return the results before the first run: everything but the rows."""
    splits = load_digits_splits(settings.seed, images=plan.images)
    checked = identities(splits["test"].images[:COMPARED], seed=settings.seed)
    return {
        "status": "running",
        "quick": settings.quick,
        "seeds": _seeds(settings),
        "images": {name: len(split.labels) for name, split in splits.items()},
        "compared": COMPARED,
        "plan": dataclasses.asdict(plan),
        "provenance": {**provenance(), "threads": "1 per process", "processes": str(workers)},
        "identities": [dataclasses.asdict(identity) | {"holds": identity.holds} for identity in checked],
        "rows": [],
    }


def _seeds(settings: DemoSettings) -> list[int]:
    return [settings.seed] if settings.quick else [settings.seed + offset for offset in range(3)]


def _experiment(key: str) -> Experiment:
    return next(experiment for experiment in EXPERIMENTS if experiment.key == key)


def row(experiment: Experiment, runs: list[dict[str, Any]], model: nn.Module) -> dict[str, Any]:
    """Return one row of the table: the accuracy's mean and spread over the runs, the costs, and the runs themselves."""
    accuracies = [run["test_accuracy"] for run in runs]
    seconds = [epoch["seconds"] for run in runs for epoch in run["epochs"]]
    return {
        "key": experiment.key,
        "family": experiment.family,
        "title": experiment.title,
        "text": experiment.text,
        "accuracy": {
            "mean": statistics.fmean(accuracies),
            "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "n": len(accuracies),
        },
        "parameters": count_parameters(model),
        "flops": count_flops(model, torch.zeros(1, 1, 8, 8)),
        "seconds": statistics.median(seconds),
        "runs": runs,
    }
