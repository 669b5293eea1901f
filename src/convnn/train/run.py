"""``convnn train``: one run from settings to result, written down as it goes and resumable at every step."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._utils.files import make_folder
from .._utils.provenance import provenance
from .._utils.quiet import quiet_lightning
from ..accounting import count_flops, count_parameters
from ..errors import RunError, invalid, missing_extra
from ..models import check_model, input_config
from .checkpoint import BEST, SafeCheckpointIO, checkpoint_to_resume, remove_leftovers
from .data.images import ImageData
from .data.inventory import describe
from .data.splits import FILE as SPLITS
from .data.splits import check_splits, save_splits
from .loading import build_model, load_checkpoint, load_run
from .module import Classifier, Optimisation, seed_epoch
from .optimizer import freeze, make_optimizer
from .processes import devices_of, rank, strategy_of
from .record import Recorder, Report
from .seeds import train_seeds
from .setting_checks import betas_of, names_of
from .settings import TrainSettings
from .settings_file import resumed, save_settings
from .signals import Interruption
from .survival import Survival

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback, RichProgressBar
    from rich.console import Console
    from timm.utils import ModelEmaV3
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error

__all__ = ["build_model", "load_checkpoint", "load_run", "train"]
Say = Callable[[str], None]


def train(settings: TrainSettings, *, say: Say | None = None, report: Report | None = None) -> dict[str, Any]:
    """Train one model, choose its best epoch on the validation images, and test that one once.

    Returns what ``result.json`` in ``settings.out`` holds. With ``settings.resume`` the run in that folder goes on from
    its last checkpoint, exactly as if it had not been interrupted; a finished run is returned as it is. With ``seeds``
    there is one run a seed, and their sum is returned. Ctrl-C and SIGTERM finish the step and save it. ``say`` receives
    the lines about the data found, ``report`` every epoch as it ends.

    Raises:
        ConvNNError: settings that are wrong or differ from those of the run to resume; a folder that holds another run;
            data that are in doubt, cannot be read, or are not those that the run to resume was started with.
        DivergedError: a loss or a weight that is not finite; the checkpoints before remain.
        RunError: a full disk, or a file that is gone; the checkpoints before remain.
        TerminatedError, KeyboardInterrupt: after SIGTERM, and after Ctrl-C.
    """
    say = say if say is not None and rank() == 0 else _silent
    if settings.auto_resume:
        there = (Path(settings.out) / "settings.yaml").exists()
        settings = dataclasses.replace(settings, resume=there, auto_resume=False)
    settings = resumed(settings) if settings.resume else settings
    settings.check()
    with Interruption() as interruption, _one_line(settings):
        if not settings.seeds:
            return _Run(settings, interruption, say=say, report=report).result()

        def once(one: TrainSettings, name: str) -> dict[str, Any]:
            say(name)
            return train(one, say=say, report=report)

        return train_seeds(settings, once)


class _Run:
    """One run: the settings, who is told of it, and what may interrupt it."""

    def __init__(self, settings: TrainSettings, interruption: Interruption, *, say: Say, report: Report | None) -> None:
        self.settings, self.say, self.report, self.interruption = settings, say, report, interruption
        self.out = Path(settings.out)
        self.writes = rank() == 0

    def result(self) -> dict[str, Any]:
        """Train and test, from the start or from the last checkpoint; return the record."""
        settings, out = self.settings, self.out
        if self.writes and not settings.resume and (out / "settings.yaml").exists():
            fix = "give --resume to go on with it, or another --out"
            raise invalid("out", "a folder without a run in it", repr(settings.out), fix)
        if settings.resume and (finished := _finished(out)):
            return finished
        _check_model(settings)
        if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
            raise missing_extra("tensorboard", "train")
        takes = input_config(settings.model, settings.image_size, settings.stem or None)
        data = ImageData(settings, takes=takes, say=self.say)
        if settings.resume:
            check_splits(data.record(), out / SPLITS)
        for line in describe(data.classes, data.counts(), data.folder):
            self.say(line)
        seed_epoch(settings.seed, -1)
        model = build_model(settings, classes=len(data.classes))
        classifier = self._classifier(model, len(data.classes))
        self._prepare_folder(data)
        recorder = Recorder(out, header=self._header(data, model), report=self.report)
        with quiet_lightning(), _interruptible(recorder):
            trainer = self._trainer(recorder)
            checkpoint = checkpoint_to_resume(out, self.say) if settings.resume else None
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            trainer.test(classifier, datamodule=data, ckpt_path=out / BEST, verbose=False, weights_only=True)
        test = {name: number for name, number in classifier.summary.items() if name.startswith("test_")}
        recorder.result.update(test=test, skipped=data.skipped)
        if self.writes:
            recorder.write("finished")
        return recorder.result

    def _classifier(self, model: nn.Module, classes: int) -> Classifier:
        """Prepare the model as the settings say, and put it into a Lightning module."""
        settings = self.settings
        if frozen := freeze(model, names_of(settings.freeze)):
            self.say(f"Frozen: {len(frozen)} of {len(list(model.parameters()))} weights: {', '.join(frozen)}")
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        average = ModelEmaV3(model, decay=settings.ema, use_warmup=settings.ema_warmup) if settings.ema else None
        if average is not None:
            average.requires_grad_(requires_grad=False)
        if settings.compile:
            model.compile()
        return Classifier(
            model,
            num_classes=classes,
            optimisation=_optimisation(settings),
            seed=settings.seed,
            average=average,
            channels_last=settings.channels_last,
            views=settings.views,
        )

    def _prepare_folder(self, data: ImageData) -> None:
        """Make the folder of the run, and write what it is resumed by; the settings last, which make it a run."""
        if not self.writes:
            return
        make_folder(self.out)
        remove_leftovers(self.out)
        if not self.settings.resume:
            if data.folder is not None:
                self.say("Reading the test images once, so that none fails after the last epoch")
                data.check_test_images()
            save_splits(data.record(), self.out / SPLITS)
            save_settings(self.settings, self.out / "settings.yaml")

    def _header(self, data: ImageData, model: nn.Module) -> dict[str, Any]:
        settings = self.settings
        size = input_config(settings.model, settings.image_size, settings.stem or None).size
        image = torch.zeros(1, settings.channels, size, size)
        try:
            flops = count_flops(model, image)
        except (RuntimeError, ValueError, AssertionError) as error:
            got, fix = f"{settings.model!r}: {error}", "change --image-size, --k or --layer"
            raise invalid("model", f"one that takes images of {size} x {size}", got, fix) from error
        return {
            "settings": dataclasses.asdict(settings),
            "classes": data.classes,
            "images": data.counts(),
            "input": {"size": size, "mean": list(data.takes.mean), "std": list(data.takes.std)},
            "parameters": count_parameters(model),
            "flops": flops,
            "provenance": {**provenance(), **_gpu()},
        }

    def _trainer(self, recorder: Recorder) -> Trainer:
        settings = self.settings
        limits: dict[str, Any] = {"minutes": settings.checkpoint_minutes, "max_steps": settings.max_steps}
        callbacks: list[Callback] = [_EvaluateEvery(settings.eval_every), recorder]
        callbacks.append(Survival(self.out, self.interruption, **limits))
        bars = settings.progress and not settings.json_lines and Console().is_terminal
        if bars:
            callbacks.append(RichProgressBar(leave=False))
        return Trainer(
            accelerator=settings.accelerator,
            devices=devices_of(settings.devices),
            num_nodes=settings.num_nodes,
            strategy=strategy_of(settings.strategy),
            sync_batchnorm=settings.sync_batchnorm,
            precision=settings.precision,  # type: ignore[arg-type]
            max_epochs=settings.epochs,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip_grad or None,
            callbacks=callbacks,
            plugins=[SafeCheckpointIO()],
            logger=_logger(settings),
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=bars,
            use_distributed_sampler=False,  # the data of a run divide each batch themselves
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=settings.out,
        )


def _check_model(settings: TrainSettings) -> None:
    """Raise ConvNNError if the model, its layers, its frozen weights and its optimiser do not go together.

    No data are read for it, and no weights: their number of classes changes the last layer alone.
    """
    check_model(settings.model)
    model = build_model(dataclasses.replace(settings, pretrained=False, weights=""), classes=2)
    freeze(model, names_of(settings.freeze))
    make_optimizer(_optimisation(settings), model)


class _EvaluateEvery(Callback):
    """Has a validation every so many epochs, and after the last one."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        """Decide whether the epoch ends with a validation."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if last else self.epochs


def _logger(settings: TrainSettings) -> Any:
    """Return Lightning's logger for TensorBoard, or False where none is wanted."""
    if not settings.tensorboard:
        return False
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(settings.out, name="", version="tensorboard")


def _gpu() -> dict[str, str]:
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}


def _finished(out: Path) -> dict[str, Any] | None:
    """Return the result of a run that has nothing left to do, or None; raises ConvNNError for one that diverged."""
    path = out / "result.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if result.get("status") == "diverged":
        fix = "it would diverge again: start another one in another --out, with a lower --lr"
        raise invalid("out", "a run that can go on", f"one that diverged ({str(out)!r})", fix)
    return result if result.get("status") == "finished" else None


@contextmanager
def _interruptible(recorder: Recorder) -> Iterator[None]:
    """Turn Lightning's exit after Ctrl-C back into the KeyboardInterrupt that it was, and Ctrl-C back on."""
    try:
        yield
    except SystemExit as stop:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if rank() == 0:
            recorder.write("interrupted")
        if isinstance(stop.__context__, BrokenPipeError):  # rich ends so when nobody reads what it prints
            raise
        raise KeyboardInterrupt from None


@contextmanager
def _one_line(settings: TrainSettings) -> Iterator[None]:
    """Turn errors of the file system into one line that says what to do."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        again = f"then go on with: convnn train --out {settings.out} --resume"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"{error.strerror} ({error.filename or settings.out}); the last checkpoint is intact"
            raise RunError(f"{what}; make room, {again}") from error
        raise RunError(f"{error}; mend it, {again}") from error


def _silent(_: str) -> None:
    """Print nothing."""


def _optimisation(settings: TrainSettings) -> Optimisation:
    same: dict[str, Any] = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Optimisation)}
    return Optimisation(**{**same, "betas": betas_of(settings.betas)})
