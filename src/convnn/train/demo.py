"""``convnn demo``: the same small networks on real digits, all the way from convolution to attention, in minutes."""

from __future__ import annotations

import dataclasses
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..accounting import count_flops, count_parameters
from ..errors import missing_extra
from .data import Split, TensorData
from .digits import load_digits_splits
from .module import Classifier, Optimisation
from .provenance import provenance
from .record import Recorder, write_json
from .settings import DemoSettings
from .spectrum import FULL, QUICK, STOPS, Plan, Stop, build, identities

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from rich.console import Console
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

Progress = Callable[[str, int], None]


def run_demo(settings: DemoSettings, *, console: Console | None = None) -> dict[str, Any]:
    """Train every stop of the spectrum, check the identities, and write results, pictures and the report to ``settings.out``.

    Returns what ``results.json`` holds; it is written after every run, so that an interrupted demo leaves what it had.
    Raises ConvNNError for wrong settings, MissingExtraError for an optional package that is not there.
    """
    from ..explain.report import write_report
    from .demo_terminal import demo_progress, print_summary

    settings.check()
    console = console or Console()
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    plan = QUICK if settings.quick else FULL
    seeds = [settings.seed] if settings.quick else [settings.seed + offset for offset in range(3)]
    splits = load_digits_splits(settings.seed)
    results: dict[str, Any] = {
        "provenance": provenance(),
        "quick": settings.quick,
        "seeds": seeds,
        "images": {name: len(split.labels) for name, split in splits.items()},
        "plan": dataclasses.asdict(plan),
        "identities": [dataclasses.asdict(i) | {"holds": i.holds} for i in identities(splits["test"].images, seed=seeds[0])],
        "rows": [],
        "status": "running",
    }
    epochs = sum(plan.epochs[stop.family] for stop in STOPS) * len(seeds)
    models: dict[str, nn.Module] = {}
    with quiet_lightning(), demo_progress(console, epochs) as progress:
        runs: dict[str, list[dict[str, Any]]] = {stop.key: [] for stop in STOPS}
        for seed in seeds:
            for stop in STOPS:
                model, run = train_stop(stop, plan=plan, splits=splits, seed=seed, progress=progress)
                models.setdefault(stop.key, model)
                runs[stop.key].append(run)
                results["rows"] = [row(s, runs[s.key], models[s.key]) for s in STOPS if runs[s.key]]
                write_json(out / "results.json", results)
    results["status"] = "finished"
    write_json(out / "results.json", results)
    write_report(results, models=models, test=splits["test"], out=out)
    print_summary(console, results, out)
    return results


def train_stop(
    stop: Stop, *, plan: Plan, splits: dict[str, Split], seed: int, progress: Progress
) -> tuple[nn.Module, dict[str, Any]]:
    """Train one stop with one seed; return the network after its last epoch and the run's record.

    Nothing is chosen: the last epoch's weights are tested, once. The validation images are only watched.
    """
    model = build(stop, seed=seed)
    classifier = Classifier(model, num_classes=10, optimisation=Optimisation(lr=plan.lr[stop.family]), seed=seed)
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=plan.epochs[stop.family],
        callbacks=[recorder, _Ticker(f"{stop.title}, seed {seed}", progress)],
        logger=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
        reload_dataloaders_every_n_epochs=1,
    )
    data = TensorData(splits, batch_size=plan.batch_size, seed=seed)
    trainer.fit(classifier, datamodule=data)
    trainer.test(classifier, datamodule=data, verbose=False)
    return model.eval(), {"seed": seed, "epochs": recorder.history, "test_accuracy": classifier.summary["test_accuracy"]}


def row(stop: Stop, runs: list[dict[str, Any]], model: nn.Module) -> dict[str, Any]:
    """Return one row of the table: the accuracy's mean and spread over the runs, the costs, and the runs themselves."""
    accuracies = [run["test_accuracy"] for run in runs]
    seconds = [epoch["seconds"] for run in runs for epoch in run["epochs"]]
    return {
        "key": stop.key,
        "family": stop.family,
        "title": stop.title,
        "text": stop.text,
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


class _Ticker(Callback):
    """Moves the demo's progress bar on by one at the end of every epoch."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.name, self.progress = name, progress

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the run, and its epoch."""
        self.progress(f"{self.name}, epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move on by one epoch."""
        self.progress(self.name, 1)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes on devices, workers and logging steps out of the terminal; its errors still show."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in (".*many workers.*", ".*number of training batches.*", ".*`len.*", ".*GPU available.*"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
