"""``convnn train``: one run from settings to result, written down as it goes and resumable at every epoch."""

from __future__ import annotations

import dataclasses
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
from ..errors import invalid, missing_extra
from ..models import CONFIGURATIONS, check_model, create_model, input_config
from .data.images import ImageData
from .data.inventory import describe
from .data.splits import FILE as SPLITS
from .data.splits import check_splits, save_splits
from .module import Classifier, Optimisation, seed_epoch
from .record import Recorder
from .settings import TrainSettings, load_settings, resumed, save_settings

try:
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import Callback, RichProgressBar
except ImportError as error:
    raise missing_extra(error.name or "lightning", "train") from error


def train(settings: TrainSettings, *, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Train one model, choose its best epoch on the validation images, and test that one once.

    Returns what ``result.json`` in ``settings.out`` holds. With ``settings.resume`` the run in that folder goes on from
    its last epoch, exactly as if it had not been interrupted; a finished run is returned as it is. Ctrl-C raises
    KeyboardInterrupt; everything but the running epoch is kept. ``say`` receives the lines about the data found.

    Raises:
        ConvNNError: settings that are wrong or differ from those of the run to resume; a folder that holds another run;
            data that are in doubt, cannot be read, or are not those that the run to resume was started with.
        DivergedError: a loss or a weight that is not finite; the checkpoints of the epochs before remain.
    """
    settings = resumed(settings) if settings.resume else settings
    settings.check()
    out = Path(settings.out)
    if not settings.resume and (out / "settings.yaml").exists():
        fix = "give --resume to go on with it, or another --out"
        raise invalid("out", "a folder without a run in it", repr(settings.out), fix)
    if settings.resume and (finished := _finished(out)):
        return finished
    check_model(settings.model)
    data = ImageData(settings, takes=input_config(settings.model, settings.image_size, settings.stem or None))
    if settings.resume:
        check_splits(data.record(), out / SPLITS)
    for line in describe(data.classes, data.counts(), data.folder):
        (say or _silent)(line)
    seed_epoch(settings.seed, -1)
    model = build_model(settings, classes=len(data.classes))
    make_folder(out)
    if not settings.resume:
        if data.folder is not None:
            (say or _silent)("Reading the test images once, so that none fails after the last epoch")
            data.check_test_images()
        save_splits(data.record(), out / SPLITS)
        save_settings(settings, out / "settings.yaml")
    recorder = Recorder(out, header=_header(settings, data, model))
    classifier = Classifier(
        model, num_classes=len(data.classes), optimisation=_optimisation(settings), seed=settings.seed
    )
    last = out / "last.ckpt"
    with quiet_lightning(), _interruptible(recorder):
        trainer = _trainer(settings, recorder)
        checkpoint = last if settings.resume and last.exists() else None
        trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        recorder.result["test"] = _test_best(trainer, classifier, data)
    recorder.write("finished")
    return recorder.result


def build_model(settings: TrainSettings, *, classes: int) -> nn.Module:
    """Build the settings' model for ``classes`` classes, its layers swapped; random weights are drawn here.

    Raises ConvNNError when the model, the layer or the image size do not go together.
    """
    fields = ("layer", "stem", "k", "branch_ratio", "candidates", "similarity", "init")
    # What is left at its default is left to the model: a named configuration says what it is.
    given: dict[str, Any] = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(TrainSettings)
        if field.name in fields and getattr(settings, field.name) != field.default
    }
    if settings.model not in CONFIGURATIONS:
        given["layer"] = settings.layer
    return create_model(
        settings.model,
        num_classes=classes,
        in_channels=settings.channels,
        image_size=settings.image_size,
        pretrained=settings.pretrained,
        **given,
    )


def load_run(out: str | Path) -> tuple[nn.Module, TrainSettings, list[str]]:
    """Return the best model of a finished or running run, in eval mode, its settings and the names of its classes.

    Raises ConvNNError when ``out`` holds no run with a finished epoch.
    """
    best = Path(out) / "best.ckpt"
    load_settings(best.with_name("settings.yaml"))
    if not best.is_file():
        raise invalid("out", "a run with a finished epoch (best.ckpt in it)", repr(str(out)), "let it train first")
    return load_checkpoint(best)


def load_checkpoint(checkpoint: Path) -> tuple[nn.Module, TrainSettings, list[str]]:
    """Return what ``load_run`` returns, of any checkpoint in the folder of a run; nothing of it is executed."""
    settings = load_settings(checkpoint.with_name("settings.yaml"))
    result = json.loads(checkpoint.with_name("result.json").read_text(encoding="utf-8"))
    classes = [str(name) for name in result["classes"]]
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model = build_model(dataclasses.replace(settings, pretrained=False), classes=len(classes))
    model.load_state_dict({name.removeprefix("model."): w for name, w in saved.items() if name.startswith("model.")})
    return model.eval(), settings, classes


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
        recorder.write("interrupted")
        if isinstance(stop.__context__, BrokenPipeError):  # rich ends so when nobody reads what it prints
            raise
        raise KeyboardInterrupt from None


def _silent(_: str) -> None:
    """Print nothing."""


def _optimisation(settings: TrainSettings) -> Optimisation:
    return Optimisation(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(Optimisation)})


def _header(settings: TrainSettings, data: ImageData, model: nn.Module) -> dict[str, Any]:
    size = input_config(settings.model, settings.image_size, settings.stem or None).size
    image = torch.zeros(1, settings.channels, size, size)
    try:
        flops = count_flops(model, image)
    except (RuntimeError, ValueError, AssertionError) as error:
        fix = "change --image-size, --k or --layer"
        raise invalid(
            "model", f"one that takes images of {size} x {size}", f"{settings.model!r}: {error}", fix
        ) from error
    return {
        "settings": dataclasses.asdict(settings),
        "classes": data.classes,
        "images": data.counts(),
        "parameters": count_parameters(model),
        "flops": flops,
        "provenance": provenance(),
    }


def _trainer(settings: TrainSettings, recorder: Recorder) -> Trainer:
    callbacks: list[Callback] = [recorder]
    if settings.progress:
        callbacks.append(RichProgressBar(leave=False))
    return Trainer(
        accelerator=settings.accelerator,
        devices=1 if settings.accelerator in ("cpu", "auto") else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=settings.epochs,
        callbacks=callbacks,
        logger=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=settings.progress,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=settings.out,
    )


def _test_best(trainer: Trainer, classifier: Classifier, data: ImageData) -> dict[str, float]:
    """Test the best epoch's weights, once."""
    best = torch.load(Path(trainer.default_root_dir) / "best.ckpt", map_location="cpu", weights_only=True)
    classifier.load_state_dict(best["state_dict"])
    trainer.test(classifier, datamodule=data, verbose=False)
    return {name: classifier.summary[name] for name in ("test_loss", "test_accuracy")}
