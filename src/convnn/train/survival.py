"""Checkpoints inside an epoch: every few minutes, and when a signal asks the run to stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..errors import TerminatedError, missing_extra
from .checkpoint import LAST
from .record import check_finite
from .signals import Interruption

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

VALIDATION = "epoch_loop.val_loop.batch_progress"
"""What the state of Lightning's fit loop calls the progress of a validation."""
POLL = 10
"""Updates between two questions of several processes whether all should save: each costs a message."""


class Survival(Checkpoint):
    """Saves ``last.ckpt`` in ``folder`` inside an epoch: every ``minutes``, and before ``interruption`` stops the run.

    Only where nothing is under way: after an update of the weights, and before a validation. A loader that cannot tell
    its place has no checkpoints inside an epoch. It stops the run at ``max_steps`` updates, too.
    """

    def __init__(
        self, folder: Path, interruption: Interruption, *, minutes: float = 0.0, max_steps: int | None = None
    ) -> None:
        self.folder, self.interruption = folder, interruption
        self.minutes, self.max_steps = minutes, max_steps
        self._saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals that Lightning has taken, and start the clock."""
        self.interruption.take()
        self._saved = time.monotonic()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Train no further where a checkpoint has all updates."""
        self._limit(trainer, int(checkpoint["global_step"]))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        """Save, and stop, where it is asked for and the weights were just updated."""
        self._limit(trainer, trainer.global_step)
        batch_idx: int = step[2]
        if trainer.is_last_batch or trainer.should_stop or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # gradients are being added up; or what follows the epoch's last batch, saves
        if trainer.world_size == 1 or trainer.global_step % POLL == 0:
            self._save_if_asked(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and stop, before a validation: a resumed run starts it again."""
        if trainer.training or trainer.validating:
            self._save_if_asked(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        """Save and stop inside a validation, which a resumed run starts again."""
        if trainer.world_size == 1 and self.interruption.pending:
            self._save_if_asked(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if it is asked for: the epoch has just been saved."""
        self._saved = time.monotonic()
        if self._agreed(trainer, self.interruption.pending):
            self._stop()

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        """Stop inside the test, which a resumed run starts again."""
        if self.interruption.pending:
            self.interruption.stop()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write down a validation as one that has just begun.

        Lightning takes up a validation at the batch where it was cut off, but its metrics only from the start.
        """
        if trainer.validating:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            checkpoint["loops"]["fit_loop"][VALIDATION].update(total=dict(begun), current=dict(begun))

    def _limit(self, trainer: Trainer, updates: int) -> None:
        if self.max_steps is not None and updates >= self.max_steps:
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1  # the last epoch has a validation

    def _save_if_asked(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = 0 < self.minutes * 60 <= time.monotonic() - self._saved
        if not self._agreed(trainer, due or self.interruption.pending):
            return
        # Lightning cannot take up a validation that ends a run inside an epoch; the checkpoint before has to do.
        if hasattr(trainer.train_dataloader, "state_dict") and not trainer.should_stop:
            check_finite(pl_module, f"after update {trainer.global_step}")
            trainer.save_checkpoint(self.folder / LAST)
        self._saved = time.monotonic()
        if self._agreed(trainer, self.interruption.pending):
            self._stop()

    def _stop(self) -> None:
        if self.interruption.pending:
            self.interruption.stop()
        raise TerminatedError("stopped with another process of the run")

    @staticmethod
    def _agreed(trainer: Trainer, asked: bool) -> bool:
        """Return whether any process asks: all have to save together."""
        if trainer.world_size == 1:
            return asked
        return bool(trainer.strategy.reduce_boolean_decision(asked, all=False))
