"""What a run can be told, a dataclass a command: its fields are the options of the CLI and the keys of the YAML."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import invalid, missing_extra, unknown_name

AUGMENTATIONS = ("none", "light", "strong")
ACCELERATORS = ("auto", "cpu", "gpu", "mps", "tpu")
PRECISIONS = ("32", "64", "bf16-mixed", "16-mixed")
RUNTIME_ONLY = ("out", "resume", "workers", "accelerator", "download", "progress")
"""Fields that may differ between a run and its resumption: they do not change what is computed."""


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of ``convnn demo``."""

    seed: int = _option(0, "first seed; the demo trains with this one and the two after it")
    out: str = _option("demo", "folder for report.html, results.json and neighbours.png")
    quick: bool = _option(False, "one seed and few epochs, under 20 s: to see that everything works")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong."""
        _whole("seed", self.seed, 0)
        _folder("out", self.out)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of ``convnn train``."""

    data: str = _option(
        "", "folder of images (class folders, perhaps inside train/ val/ test/), or timm's name: hfds/..."
    )
    data_dir: str = _option("", "where a dataset that is named, not a folder, is kept (timm's root)")
    download: bool = _option(False, "let a named dataset be downloaded into --data-dir")
    train_split: str = _option("train", "name of the training split; . if all folders of --data are classes")
    val_split: str = _option("", "name of the validation split; empty: val/ of the folder, else cut from train")
    test_split: str = _option("", "name of the test split; empty: test/ of the folder, else cut from train")
    val_fraction: float = _option(0.1, "share of the training images cut off for validation where no such split exists")
    test_fraction: float = _option(0.1, "share of the training images cut off for the test where no such split exists")
    model: str = _option("small_cnn", "small_cnn, resnet50, vgg11_hybrid_random144, ... or any model name of timm")
    layer: str = _option(
        "conv", "what to swap the convolutions or the attention for; conv: nothing, or as the model's name says"
    )
    k: int = _option(9, "neighbours of a ConvNN layer")
    branch_ratio: float = _option(0.5, "share of a hybrid's channels that come from its ConvNN branch")
    candidates: str = _option("all", "who may be a neighbour: all, random:32, grid:5 or window:7; fewer cost less")
    similarity: str = _option("", "how tokens are compared: cosine, dot, blend:0.5, ...; empty: the layer's own")
    stem: str = _option("", "imagenet, or cifar for 32 x 32 images; empty: the model's own")
    init: str = _option("default", "weights of swapped layers: default, random or from_original (where they fit)")
    pretrained: bool = _option(False, "start from timm's pretrained weights (loaded before layers are swapped)")
    image_size: int | None = _option(None, "side of the square input; default: the model's own")
    channels: int = _option(3, "1 reads the images as grey, 3 as colour")
    augment: str = _option("light", "none, light (crop and flip) or strong (timm's RandAugment and erasing)")
    epochs: int = _option(10, "passes over the training images")
    batch_size: int = _option(64, "images a step")
    lr: float = _option(1e-3, "highest learning rate: warm-up, then cosine to zero")
    weight_decay: float = _option(0.02, "weight decay; biases and norms have none")
    warmup: float = _option(0.1, "share of all steps over which the learning rate rises")
    optimizer: str = _option("adamw", "any optimiser name of timm")
    label_smoothing: float = _option(0.0, "label smoothing of the training loss")
    seed: int = _option(0, "seed of the weights, the splits, the batches and the augmentation")
    workers: int = _option(0, "processes that read images; 0 reads them in the training process")
    accelerator: str = _option("auto", "auto, cpu, gpu, mps or tpu")
    precision: str = _option("32", "32, 64, bf16-mixed or 16-mixed")
    out: str = _option(
        "runs/default", "folder of the run: settings.yaml, splits.json, result.json, last.ckpt, best.ckpt"
    )
    resume: bool = _option(False, "go on with the run in --out")
    progress: bool = _option(True, "show progress bars")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong; nothing is read but the existence of folders."""
        from ..models import LAYERS, parse_candidates, parse_similarity
        from ..models.backbones import STEMS
        from ..models.layers import INITS

        parse_candidates(self.candidates)
        parse_similarity(self.similarity or "cosine")
        _check_data(self)
        for field, minimum in (("k", 1), ("epochs", 1), ("batch_size", 1), ("seed", 0), ("workers", 0)):
            _whole(field, getattr(self, field), minimum)
        if self.image_size is not None:
            _whole("image_size", self.image_size, 1)
        for field in ("branch_ratio", "warmup"):
            _number(field, getattr(self, field), (0.0, 1.0), "[0, 1]")
        _number("lr", self.lr, (5e-324, math.inf), "above 0")
        _number("weight_decay", self.weight_decay, (0.0, math.inf), "of at least 0")
        _number("label_smoothing", self.label_smoothing, (0.0, 0.999), "[0, 1)")
        if self.channels not in (1, 3):
            raise invalid("channels", "1 (grey) or 3 (colour)", self.channels, "use 3 if in doubt")
        for field, allowed in (
            ("layer", tuple(LAYERS)),
            ("init", INITS),
            ("stem", ("", *STEMS)),
            ("augment", AUGMENTATIONS),
            ("accelerator", ACCELERATORS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, field) not in allowed:
                raise unknown_name(field, getattr(self, field), allowed)
        _folder("out", self.out)


def _check_data(settings: TrainSettings) -> None:
    data = settings.data
    if not data:
        raise invalid("data", "a folder of images or a dataset name of timm", "nothing", "give --data PATH")
    if not is_named(data) and not Path(data).is_dir():
        fix = "check the path (a folder), or give a name of timm: torch/cifar10, hfds/..., hfids/..., tfds/..., wds/..."
        got = f"{data!r}, which is a file" if Path(data).exists() else repr(data)
        raise invalid("data", "a folder that exists", got, fix)
    for field in ("val_fraction", "test_fraction"):
        _number(field, getattr(settings, field), (1e-9, 0.9), "above 0 and at most 0.9")
    if settings.val_fraction + settings.test_fraction >= 1:
        got = f"{settings.val_fraction} + {settings.test_fraction}"
        raise invalid("val_fraction", "val_fraction + test_fraction below 1", got, "leave some images to train on")


def is_named(data: str) -> bool:
    """Tell whether ``data`` is a dataset name of timm, such as ``torch/cifar10``, and not a folder.

    >>> is_named("torch/cifar10"), is_named("images/flowers")
    (True, False)
    """
    return (
        data.split("/", maxsplit=1)[0].lower() in ("torch", "hfds", "hfids", "tfds", "wds") and not Path(data).is_dir()
    )


def _whole(argument: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise invalid(argument, f"a whole number of at least {minimum}", repr(value), f"use {minimum} or more")


def _number(argument: str, value: object, limits: tuple[float, float], words: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not limits[0] <= float(str(value)) <= limits[1]:
        words = f"in {words}" if words.startswith("[") else words
        raise invalid(argument, f"a number {words}", repr(value), "change it")


def _folder(argument: str, value: str) -> None:
    path = Path(value)
    if not value or (path.exists() and not path.is_dir()):
        raise invalid(argument, "the name of a folder (made if it does not exist)", repr(value), "choose another name")


def save_settings(settings: TrainSettings, path: Path) -> None:
    """Write the settings as YAML that ``convnn train --config`` reads; raises MissingExtraError without PyYAML."""
    yaml = _yaml()
    values = {k: v for k, v in dataclasses.asdict(settings).items() if k != "resume"}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def load_settings(path: Path) -> TrainSettings:
    """Read settings that ``save_settings`` wrote; raises ConvNNError when the file is missing or is not such a file."""
    if not path.is_file():
        raise invalid(
            "out", f"a folder with a run to resume ({path.name} in it)", repr(str(path.parent)), "check --out"
        )
    values = _yaml().safe_load(path.read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(TrainSettings)}
    if not isinstance(values, dict) or not set(values) <= known:
        raise invalid(
            path.name, "the settings of convnn train", repr(values)[:80], "restore the file that the run wrote"
        )
    return TrainSettings(**values)


def resumed(settings: TrainSettings) -> TrainSettings:
    """Return the settings of the run in ``settings.out``, to resume it exactly.

    What only decides where and how fast it runs (``RUNTIME_ONLY``) is taken from ``settings``. Raises ConvNNError when
    there is no run, or when a field is given that differs from the run's.
    """
    saved = load_settings(Path(settings.out) / "settings.yaml")
    for field in dataclasses.fields(TrainSettings):
        given, before = getattr(settings, field.name), getattr(saved, field.name)
        if field.name not in RUNTIME_ONLY and given not in (field.default, before):
            expected = f"{before!r}, as the run in {settings.out} was started"
            raise invalid(field.name, expected, repr(given), "leave it out to resume, or start anew in another --out")
    return dataclasses.replace(saved, **{name: getattr(settings, name) for name in RUNTIME_ONLY})


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("PyYAML", "cli") from error
    return yaml
