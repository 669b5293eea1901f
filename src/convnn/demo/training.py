"""One run of the demo: one experiment with one seed, trained to the last epoch and tested once."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import torch
from torch import nn

from .._utils.quiet import quiet_lightning
from ..errors import missing_extra
from ..train.data.resident import TensorData
from ..train.module import Classifier, Optimisation
from ..train.record import Recorder
from .digits import load_digits_splits
from .spectrum import EXPERIMENTS, TrainingPlan, build
from .workers import Report

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error


class Task(NamedTuple):
    """A run for a worker: the key of its experiment, its seed, the seed of the splits and the plan."""

    key: str
    seed: int
    split_seed: int
    plan: TrainingPlan


def train_experiment(task: Task, report: Report) -> tuple[dict[str, Any], bytes]:
    """Train one experiment with one seed; return the run's record and the weights as ``load_weights`` reads them.

    The last epoch's weights are tested, once; the validation images select nothing.
    """
    experiment = next(experiment for experiment in EXPERIMENTS if experiment.key == task.key)
    plan = task.plan
    model = build(experiment, seed=task.seed)
    optimisation = Optimisation(lr=plan.lr[experiment.family])
    classifier = Classifier(model, num_classes=10, optimisation=optimisation, seed=task.seed)
    recorder = Recorder()
    data = TensorData(
        load_digits_splits(task.split_seed, images=plan.images), batch_size=plan.batch_size, seed=task.seed
    )
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=plan.epochs[experiment.family],
            callbacks=[recorder, _ProgressCallback(f"{experiment.title}, seed {task.seed}", report)],
            logger=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=False,
            reload_dataloaders_every_n_epochs=1,
        )
        trainer.fit(classifier, datamodule=data)
        trainer.test(classifier, datamodule=data, verbose=False)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    run = {"seed": task.seed, "epochs": recorder.history, "test_accuracy": classifier.summary["test_accuracy"]}
    return run, buffer.getvalue()


def load_weights(model: nn.Module, weights: bytes) -> nn.Module:
    """Load weights that ``train_experiment`` returned; returns the model, in eval mode."""
    model.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    return model.eval()


class _ProgressCallback(Callback):
    """Advances the demo's progress bar by one at the end of every epoch."""

    def __init__(self, name: str, report: Report) -> None:
        self.name, self.report = name, report

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the run, and its epoch."""
        self.report(f"{self.name}, epoch {trainer.current_epoch + 1} of {trainer.max_epochs}", 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance the bar by one epoch."""
        self.report(self.name, 1)
