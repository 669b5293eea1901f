"""The record of a run: every epoch is written as it ends, with a checkpoint that the run can resume from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from .._utils.files import write_json
from ..errors import DivergedError, missing_extra
from .module import STEADIER

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error


class Recorder(Checkpoint):
    """Keeps the history of a run; with a ``folder`` it also writes, after every epoch.

    In this order: ``best.ckpt`` (if the validation accuracy is the best so far), ``last.ckpt`` (to resume from) and
    ``result.json`` (``header``, the status, the history, the best epoch). Without one it only remembers. An epoch that
    leaves weights that are not finite is not written: it raises DivergedError, and the checkpoints before it remain.
    """

    def __init__(self, folder: Path | None = None, *, header: dict[str, Any] | None = None) -> None:
        self.folder = folder
        self.result: dict[str, Any] = {**(header or {}), "status": "running", "epochs": [], "best": None, "test": None}
        self._started = self._seconds = 0.0

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry an epoch: its number, losses, accuracies, learning rate and the seconds of its training."""
        history: list[dict[str, float]] = self.result["epochs"]
        return history

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the record."""
        return {"epochs": self.history, "best": self.result["best"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the record where the checkpoint left it."""
        self.result["epochs"], self.result["best"] = list(state_dict["epochs"]), state_dict["best"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started, self._seconds = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: the seconds of an epoch are those of its training."""
        self._seconds = time.perf_counter() - self._started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch down and save the checkpoints, if its weights are finite."""
        if broken := not_finite(pl_module):
            got = f"{broken} is no longer finite after epoch {trainer.current_epoch + 1}"
            raise DivergedError(f"the training diverged: {got}; {STEADIER}")
        entry = {"epoch": trainer.current_epoch + 1, **getattr(pl_module, "summary", {})}
        entry["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
        entry["seconds"] = self._seconds or time.perf_counter() - self._started
        self.history.append(entry)
        best = self.result["best"]
        improved = "val_accuracy" in entry and (best is None or entry["val_accuracy"] > best["val_accuracy"])
        if improved:
            self.result["best"] = entry
        if self.folder is not None:
            for name in ("best.ckpt", "last.ckpt") if improved else ("last.ckpt",):
                trainer.save_checkpoint(self.folder / name)
        self.write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record that the run was cut off; the last epoch's checkpoint remains."""
        if isinstance(exception, DivergedError):
            self.result.update(best=None, diverged=str(exception))
            self.write("diverged")
        else:
            self.write("interrupted" if isinstance(exception, KeyboardInterrupt) else "failed")

    def write(self, status: str | None = None) -> None:
        """Write ``result.json``, with a new status if one is given."""
        self.result["status"] = status or self.result["status"]
        if self.folder is not None:
            write_json(self.folder / "result.json", self.result)


def not_finite(module: LightningModule) -> str | None:
    """Return the name of the first weight that is not finite, or buffer that holds nan; None where there is none."""
    weights = (name for name, weight in module.named_parameters() if not bool(weight.isfinite().all()))
    buffers = (name for name, buffer in module.named_buffers() if bool(buffer.isnan().any()))  # masks may hold -inf
    return next(weights, None) or next(buffers, None)
