"""The record of a run: every epoch is written as it ends, with a checkpoint that the run can resume from."""

from __future__ import annotations

import contextlib
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .._utils.files import staged, write_json
from ..errors import DivergedError, TerminatedError, missing_extra
from .checkpoint import BEST, LAST
from .module import STEADIER

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

Report = Callable[[str, dict[str, Any]], None]
"""Receives what happened: the name of an event (``epoch``, ``step``) and its numbers."""


class Recorder(Checkpoint):
    """Keeps the history of a run; with a ``folder`` it also writes, after every epoch.

    In this order: ``best.ckpt`` (if the validation accuracy is the best so far), ``last.ckpt`` (to resume from),
    ``metrics.csv`` and ``result.json`` (``header``, the status, the history, the best epoch). Without one it only
    remembers. An epoch that leaves weights that are not finite is not written: it raises DivergedError, and the
    checkpoints before it remain. ``report`` receives every epoch.
    """

    def __init__(
        self, folder: Path | None = None, *, header: dict[str, Any] | None = None, report: Report | None = None
    ) -> None:
        self.folder, self.report = folder, report
        self.result: dict[str, Any] = {**(header or {}), "status": "running", "epochs": [], "best": None, "test": None}
        self._seconds, self._images = 0.0, 0
        self._running_since: float | None = None

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry an epoch: its number, losses, accuracies, learning rate, seconds of training, speed and memory."""
        history: list[dict[str, float]] = self.result["epochs"]
        return history

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the record."""
        running = {"seconds": self._clock(), "images": self._images}
        return {"epochs": list(self.history), "best": self.result["best"], **running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the record where the checkpoint left it."""
        self.result["epochs"], self.result["best"] = list(state_dict["epochs"]), state_dict["best"]
        self._seconds, self._images = state_dict["seconds"], state_dict["images"]

    def _clock(self) -> float:
        return self._seconds + (0.0 if self._running_since is None else time.perf_counter() - self._running_since)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, in the middle of an epoch too."""
        self._running_since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the clock to zero and start it."""
        self._seconds, self._images, self._running_since = 0.0, 0, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        """Count the images of a step, on all processes."""
        _, batch, _ = step
        self._images += len(batch[1]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: the seconds of an epoch are those of its training."""
        self._seconds, self._running_since = self._clock(), None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch down and save the checkpoints, if its weights are finite."""
        check_finite(pl_module, f"after epoch {trainer.current_epoch + 1}")
        seconds = self._clock()
        entry: dict[str, Any] = {"epoch": trainer.current_epoch + 1, **getattr(pl_module, "summary", {})}
        entry["step"] = trainer.global_step
        entry["lr"] = max(float(group["lr"]) for group in trainer.optimizers[0].param_groups)
        entry["seconds"] = seconds
        entry["images_per_second"] = self._images / max(seconds, 1e-9)
        entry["peak_memory"] = peak_memory(pl_module.device)
        self._seconds, self._images, self._running_since = 0.0, 0, None
        self.history.append(entry)
        best = self.result["best"]
        improved = "val_accuracy" in entry and (best is None or entry["val_accuracy"] > best["val_accuracy"])
        if improved:
            self.result["best"] = entry
        if self.folder is not None:
            if improved:
                trainer.save_checkpoint(self.folder / BEST, weights_only=True)
            trainer.save_checkpoint(self.folder / LAST)
        if trainer.is_global_zero:
            self.write()
            if self.report is not None:
                self.report("epoch", {**entry, "epochs": trainer.max_epochs})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record that the run was cut off; the last checkpoint remains."""
        if not trainer.is_global_zero:
            return
        if isinstance(exception, DivergedError):
            self.result.update(best=None, diverged=str(exception))
            self.write("diverged")
            return
        stopped = isinstance(exception, KeyboardInterrupt | TerminatedError)
        with contextlib.suppress(OSError):  # a full disk is what may have stopped the run
            self.write("interrupted" if stopped else "failed")

    def write(self, status: str | None = None) -> None:
        """Write ``metrics.csv`` and ``result.json``, with a new status if one is given."""
        self.result["status"] = status or self.result["status"]
        if self.folder is not None:
            write_table(self.folder / "metrics.csv", self.history)
            write_json(self.folder / "result.json", self.result)


def write_table(path: Path, rows: list[dict[str, float]]) -> None:
    """Write rows as CSV, a column for every name that occurs; the file is at every moment the old or the new one."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with staged(path.parent) as temporary, (temporary / path.name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def check_finite(module: LightningModule, when: str) -> None:
    """Raise DivergedError if a weight is not finite, or a buffer holds nan."""
    weights = (name for name, weight in module.named_parameters() if not bool(weight.isfinite().all()))
    buffers = (name for name, buffer in module.named_buffers() if bool(buffer.isnan().any()))  # masks may hold -inf
    broken = next(weights, None) or next(buffers, None)
    if broken:
        raise DivergedError(f"the training diverged: {broken} is no longer finite {when}; {STEADIER}")


def peak_memory(device: torch.device) -> int:
    """Return the largest number of bytes in use so far: of the GPU, else of this process (0 where nothing tells)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)
