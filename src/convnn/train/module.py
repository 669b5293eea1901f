"""The Lightning module: one classifier, its loss, its metrics (counted image by image), its optimiser and schedule."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DivergedError, invalid, missing_extra
from .optimizer import Optimisation, make_optimizer, make_schedule
from .randomness import COMPUTING, mixed_seed, seed_epoch, seed_step
from .views import mean_logits

try:
    from lightning.pytorch import LightningModule
    from timm.utils import ModelEmaV3
    from torchmetrics import MeanMetric, Metric
    from torchmetrics.classification import MulticlassAccuracy
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

__all__ = ["Classifier", "Optimisation", "mixed_seed", "seed_epoch", "seed_step"]
Batch = tuple[Tensor, Tensor]
ONE_VALUE = "Expected more than 1 "
"""How torch's normalisation layers begin to say that they cannot take statistics of one number."""
STEADIER = "lower --lr, raise --warmup or --batch-size, or use --precision 32"
"""What to try when a run has diverged."""
METRICS = "train_metrics"
"""What a checkpoint calls the sums of the training metrics."""


class Classifier(LightningModule):
    """Trains ``model`` (images ``(B, C, H, W)`` -> logits ``(B, num_classes)``) by cross-entropy.

    Every step starts from random states made of ``seed``, the epoch and the step, so that a run that is resumed goes
    on exactly as the uninterrupted one, on any number of processes. ``average`` is a moving average of the weights,
    which is then what is evaluated, by the mean logits of the ``views`` of an image (``views.mean_logits``).
    ``summary`` holds the last epoch's numbers by name (``val_accuracy``, ...); each is a mean over images, whatever
    the size of the batches.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        optimisation: Optimisation,
        seed: int = 0,
        average: ModelEmaV3 | None = None,
        channels_last: bool = False,
        views: str = "one",
    ) -> None:
        super().__init__()
        self.model = model
        self.average = average
        self.channels_last = channels_last
        self.views = views
        self.optimisation = optimisation
        self.seed = seed
        self.summary: dict[str, float] = {}
        self.mixer = optimisation.mixer(num_classes)
        stages = ("train", "val", "test")
        counting: dict[str, Any] = {"num_classes": num_classes, "average": "micro", "validate_args": False}
        metrics: dict[str, Metric] = {}
        for stage in stages:
            # A metric drops nan by default. ("disable" would keep it, and forget the weights: torchmetrics 1.9.)
            metrics[f"{stage}_loss"] = MeanMetric(nan_strategy="error")
            metrics[f"{stage}_accuracy"] = MulticlassAccuracy(**counting)
            if num_classes >= 5 and stage != "train":
                metrics[f"{stage}_top5"] = MulticlassAccuracy(top_k=5, **counting)
        self.metrics = nn.ModuleDict(metrics)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` for images ``(B, C, H, W)``; in eval mode the averaged weights'."""
        model = self.model if self.training or self.average is None else self.average.module
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = model(images)
        return logits

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the loss of one batch: images ``(B, C, H, W)`` and labels ``(B,)``."""
        seed_step(self.seed, self.current_epoch, batch_index, stream=COMPUTING)
        images, labels = batch
        targets = labels
        if self.mixer is not None:
            images, targets = _mixed(self.mixer, images, labels)
        logits = self._logits(images)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.optimisation.label_smoothing)
        if self._processes > 1:
            return self._shared(loss, logits, batch, batch_index)
        self._count("train", loss, (logits, labels), where=(images, batch_index))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Count one validation batch."""
        self._evaluate("val", batch, batch_index)

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """Count one test batch."""
        self._evaluate("test", batch, batch_index)

    def _evaluate(self, stage: str, batch: Batch, batch_index: int) -> None:
        images, labels = batch
        if len(labels) == 0:  # this process's share of a small last batch
            return
        logits = mean_logits(self._logits, images, self.views)
        self._count(stage, F.cross_entropy(logits, labels), (logits, labels), where=(images, batch_index))

    def _shared(self, loss: Tensor, logits: Tensor, batch: Batch, batch_index: int) -> Tensor:
        """Return this process's share of the loss of the whole batch, of which it has only some images.

        Processes add up their gradients and divide by their number; so the share is weighted by its images.
        """
        images, labels = batch
        count = loss.new_tensor(float(len(labels)))
        share = loss * count if len(labels) else logits.sum() * 0.0
        whole: Any = self.trainer.strategy.reduce(torch.stack((count, share.detach())), reduce_op="sum")
        self._check_finite("train", float(whole[1] / whole[0]), images, batch_index)
        if len(labels):
            self._update("train", loss, logits, labels)
        weighted: Tensor = share * self._processes / whole[0]
        return weighted

    def _count(self, stage: str, loss: Tensor, outputs: tuple[Tensor, Tensor], *, where: tuple[Tensor, int]) -> None:
        self._check_finite(stage, float(loss.detach()), *where)
        self._update(stage, loss, *outputs)

    def _update(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.metric(f"{stage}_loss").update(loss.detach(), weight=len(labels))
        for kind in ("accuracy", "top5"):
            if f"{stage}_{kind}" in self.metrics:
                self.metric(f"{stage}_{kind}").update(logits.detach(), labels)

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

    def _check_finite(self, stage: str, loss: float, images: Tensor, batch_index: int) -> None:
        """Raise DivergedError that says where a loss is not finite, and what to do."""
        if math.isfinite(loss):
            return
        what = {"train": "training loss", "val": "validation loss", "test": "test loss"}[stage]
        epoch = "" if stage == "test" else f"epoch {self.current_epoch + 1}, "
        where = f"the {what} is {loss} at {epoch}step {batch_index + 1}"
        if not bool(images.isfinite().all()):
            raise DivergedError(f"{where}, whose images have pixels that are nan or inf; mend the data")
        raise DivergedError(f"the training diverged: {where}; {STEADIER}")

    def metric(self, name: str) -> Metric:
        """Return a metric by its name: ``train_loss``, ``val_accuracy``, ``test_top5``, ..."""
        metric = self.metrics[name]
        if not isinstance(metric, Metric):
            raise TypeError(f"{name} is not a metric")
        return metric

    @property
    def _processes(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    def on_train_epoch_start(self) -> None:
        """Set the epoch's random states, and forget the numbers of the one before."""
        self.summary.clear()
        seed_epoch(self.seed, self.current_epoch)

    def on_train_epoch_end(self) -> None:
        """Sum up the training epoch."""
        self._sum_up("train")

    def on_validation_epoch_start(self) -> None:
        """Forget a validation that was cut off."""
        for name in self.metrics:
            if name.startswith("val_"):
                self.metric(name).reset()

    def on_validation_epoch_end(self) -> None:
        """Sum up the validation epoch."""
        self._sum_up("val")

    def on_test_epoch_end(self) -> None:
        """Sum up the test."""
        self._sum_up("test")

    def _sum_up(self, stage: str) -> None:
        for name in self.metrics:
            if name.startswith(f"{stage}_"):
                self.summary[name] = float(self.metric(name).compute())
                self.metric(name).reset()
                self.log(name, self.summary[name], prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Return timm's optimiser and its schedule, update by update.

        Raises ConvNNError for an optimiser that timm does not know, and for options that it does not have.
        """
        optimizer = make_optimizer(self.optimisation, self.model)
        schedule = make_schedule(self.optimisation, optimizer, self._updates())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _updates(self) -> int:
        """Return how often the run will update the weights."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None:
            return int(self.trainer.estimated_stepping_batches)
        # Not Lightning's estimate: it would set up the loader before a checkpoint could say where to start.
        limit = self.optimisation.max_steps
        try:
            batches = len(data.train_dataloader())
        except TypeError as error:
            if limit is None:
                got = "none, for a stream of unknown length"
                raise invalid("max_steps", "a number of updates", got, "give --max-steps") from error
            return limit
        total = math.ceil(batches / self.trainer.accumulate_grad_batches) * int(self.trainer.max_epochs or 1)
        return total if limit is None else min(limit, total)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate of the next update."""
        scheduler.step_update(num_updates=self.trainer.global_step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the weights, then their average."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.model, step=self.trainer.global_step + 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of the training metrics over all processes, for a checkpoint inside an epoch."""
        kept: dict[str, dict[str, Tensor]] = {}
        for name in ("train_loss", "train_accuracy"):
            with self.metric(name).sync_context(should_sync=self._processes > 1):
                states: dict[str, Any] = self.metric(name).metric_state
                kept[name] = {key: value.detach().cpu().clone() for key, value in states.items()}
        checkpoint[METRICS] = kept

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the sums of the training metrics; one process does, because sums are added up over processes."""
        if self._trainer is not None and self.trainer.global_rank != 0:
            return
        for name, states in checkpoint.get(METRICS, {}).items():
            metric = self.metric(name)
            metric.persistent(mode=True)
            metric.load_state_dict(states)
            metric.persistent(mode=False)


def _mixed(mixer: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return mixed images, and labels ``(B, num_classes)`` that add up to 1; of an odd number the last stays alone."""
    even = len(labels) - len(labels) % 2
    targets = F.one_hot(labels, mixer.num_classes).to(images.dtype)
    if even:
        mixed, mixed_targets = mixer(images[:even].clone(), labels[:even])
        images = torch.cat((mixed, images[even:]))
        targets = torch.cat((mixed_targets.to(targets.dtype), targets[even:]))
    return images, targets
