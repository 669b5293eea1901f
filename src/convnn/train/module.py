"""The Lightning module: one classifier, its loss, its metrics (counted image by image), its optimiser and schedule."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DivergedError, invalid, missing_extra, unknown_name

try:
    from lightning.pytorch import LightningModule
    from torchmetrics import MeanMetric, Metric
    from torchmetrics.classification import MulticlassAccuracy
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

Batch = tuple[Tensor, Tensor]
ONE_VALUE = "Expected more than 1 "
"""How torch's normalisation layers begin to say that they cannot take statistics of one number."""
STEADIER = "lower --lr, raise --warmup or --batch-size, or use --precision 32"
"""What to try when a run has diverged."""


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How weights are updated: timm's optimiser by name, linear warm-up, then cosine to zero, step by step."""

    lr: float = 1e-3
    weight_decay: float = 0.02
    optimizer: str = "adamw"
    warmup: float = 0.1
    label_smoothing: float = 0.0

    def factor(self, step: int, total: int) -> float:
        """Return the share of ``lr`` at ``step`` of ``total``.

        >>> [round(Optimisation(warmup=0.5).factor(step, 8), 2) for step in (0, 3, 4, 6, 8)]
        [0.25, 1.0, 1.0, 0.5, 0.0]
        """
        rise = max(1, round(self.warmup * total))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))


class Classifier(LightningModule):
    """Trains ``model`` (images ``(B, C, H, W)`` -> logits ``(B, num_classes)``) by cross-entropy.

    Every epoch starts from random states made of ``seed`` and the epoch's number, so that a run that is resumed at an
    epoch goes on exactly as the uninterrupted one. ``summary`` holds the last epoch's numbers by name
    (``val_accuracy``, ...); each is a mean over images, whatever the size of the batches.
    """

    def __init__(self, model: nn.Module, *, num_classes: int, optimisation: Optimisation, seed: int = 0) -> None:
        super().__init__()
        self.model = model
        self.optimisation = optimisation
        self.seed = seed
        self.summary: dict[str, float] = {}
        stages = ("train", "val", "test")
        # A metric drops nan by default. ("disable" would keep it, and forget the weights: torchmetrics 1.9.)
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanMetric(nan_strategy="error") for stage in stages})
        self.accuracies = nn.ModuleDict(
            {f"{s}_accuracy": MulticlassAccuracy(num_classes, average="micro") for s in stages}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits ``(B, num_classes)`` for images ``(B, C, H, W)``."""
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch: images ``(B, C, H, W)`` and labels ``(B,)``."""
        return self._step("train", batch, batch_index)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count one validation batch."""
        self._step("val", batch, batch_index)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Count one test batch."""
        self._step("test", batch, batch_index)

    def _step(self, stage: str, batch: Batch, batch_index: int) -> Tensor:
        images, labels = batch
        logits = self._logits(images)
        smoothing = self.optimisation.label_smoothing if stage == "train" else 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if not bool(loss.isfinite()):
            raise DivergedError(self._diverged(stage, images, float(loss.detach()), batch_index))
        self._metric(self.losses, f"{stage}_loss").update(loss.detach(), weight=len(labels))
        self._metric(self.accuracies, f"{stage}_accuracy").update(logits.detach(), labels)
        return loss

    def _logits(self, images: Tensor) -> Tensor:
        try:
            logits: Tensor = self(images)
        except ValueError as error:
            if ONE_VALUE not in str(error):
                raise
            got = f"{len(images)}, of which a normalisation layer sees one value a channel"
            fix = "raise --batch-size (2 or more, and images to fill it) or --image-size"
            raise invalid("batch_size", "images a step from which statistics can be taken", got, fix) from error
        return logits

    def _diverged(self, stage: str, images: Tensor, loss: float, batch_index: int) -> str:
        """Say in one line where a loss was not finite, and what to do."""
        what = {"train": "training loss", "val": "validation loss", "test": "test loss"}[stage]
        epoch = "" if stage == "test" else f"epoch {self.current_epoch + 1}, "
        where = f"the {what} is {loss} at {epoch}step {batch_index + 1}"
        if not bool(images.isfinite().all()):
            return f"{where}, whose images have pixels that are nan or inf; mend the data"
        return f"the training diverged: {where}; {STEADIER}"

    @staticmethod
    def _metric(metrics: nn.ModuleDict, name: str) -> Metric:
        metric = metrics[name]
        if not isinstance(metric, Metric):
            raise TypeError(f"{name} is not a metric")
        return metric

    def on_train_epoch_start(self) -> None:
        """Set the epoch's random states."""
        seed_epoch(self.seed, self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Sum up the training epoch."""
        self._sum_up("train")

    def on_validation_epoch_end(self) -> None:
        """Sum up the validation epoch."""
        self._sum_up("val")

    def on_test_epoch_end(self) -> None:
        """Sum up the test."""
        self._sum_up("test")

    def _sum_up(self, stage: str) -> None:
        for metrics, name in ((self.losses, f"{stage}_loss"), (self.accuracies, f"{stage}_accuracy")):
            metric = self._metric(metrics, name)
            self.summary[name] = float(metric.compute())
            metric.reset()
            self.log(name, self.summary[name], prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Return timm's optimiser and the schedule; raises ConvNNError for an optimiser that timm does not know."""
        try:
            from timm.optim import create_optimizer_v2, list_optimizers
        except ImportError as error:
            raise missing_extra("timm", "vision") from error
        plan = self.optimisation
        names = [str(name) for name in list_optimizers()]
        if plan.optimizer not in names:
            raise unknown_name("optimizer", plan.optimizer, names)
        optimizer = create_optimizer_v2(self.model, opt=plan.optimizer, lr=plan.lr, weight_decay=plan.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def mixed_seed(seed: int, epoch: int) -> int:
    """Return one 32-bit seed for an epoch of a run; neighbouring runs and epochs get unrelated ones."""
    return (seed * 0x9E3779B1 + epoch * 0x85EBCA6B + 0x27D4EB2F) & 0xFFFFFFFF


def seed_epoch(seed: int, epoch: int) -> None:
    """Set the random states of Python, numpy and torch from a seed and an epoch."""
    import numpy

    mixed = mixed_seed(seed, epoch)
    random.seed(mixed)
    numpy.random.seed(mixed)  # noqa: NPY002 - the legacy state is what augmentations draw from
    torch.manual_seed(mixed)
