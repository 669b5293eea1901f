"""The settings of a run: their fields are the options of ``convnn train`` and the keys of its YAML file."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._utils.settings import check_folder, check_number, check_whole, option
from ..errors import invalid, missing_extra, unknown_name
from .data.options import check_data_options

AUGMENTATIONS = ("none", "light", "strong")
ACCELERATORS = ("auto", "cpu", "gpu", "mps", "tpu")
PRECISIONS = ("32", "64", "bf16-mixed", "16-mixed")
RUNTIME_ONLY = ("out", "resume", "workers", "accelerator", "download", "progress")
"""Fields that may differ between a run and its resumption: they do not change what is computed."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of ``convnn train``."""

    data: str = option(
        "", "folder of images (class folders, perhaps inside train/ val/ test/), or timm's name: hfds/..."
    )
    data_dir: str = option("", "where a dataset that is named, not a folder, is kept (timm's root)")
    download: bool = option(False, "let a named dataset be downloaded into --data-dir")
    train_split: str = option("train", "name of the training split; . if all folders of --data are classes")
    val_split: str = option("", "name of the validation split; empty: val/ of the folder, else cut from train")
    test_split: str = option("", "name of the test split; empty: test/ of the folder, else cut from train")
    val_fraction: float = option(0.1, "share of the training images cut off for validation where no such split exists")
    test_fraction: float = option(0.1, "share of the training images cut off for the test where no such split exists")
    model: str = option("small_cnn", "small_cnn, resnet50, vgg11_hybrid_random144, ... or any model name of timm")
    layer: str = option(
        "conv", "what to swap the convolutions or the attention for; conv: nothing, or as the model's name says"
    )
    k: int = option(9, "neighbours of a ConvNN layer")
    branch_ratio: float = option(0.5, "share of a hybrid's channels that come from its ConvNN branch")
    candidates: str = option("all", "who may be a neighbour: all, random:32, grid:5 or window:7; fewer cost less")
    similarity: str = option("", "how tokens are compared: cosine, dot, blend:0.5, ...; empty: the layer's own")
    stem: str = option("", "imagenet, or cifar for 32 x 32 images; empty: the model's own")
    init: str = option("default", "weights of swapped layers: default, random or from_original (where they fit)")
    pretrained: bool = option(False, "start from timm's pretrained weights (loaded before layers are swapped)")
    image_size: int | None = option(None, "side of the square input; default: the model's own")
    channels: int = option(3, "1 reads the images as grey, 3 as colour")
    augment: str = option("light", "none, light (crop and flip) or strong (timm's RandAugment and erasing)")
    epochs: int = option(10, "passes over the training images")
    batch_size: int = option(64, "images a step")
    lr: float = option(1e-3, "highest learning rate: warm-up, then cosine to zero")
    weight_decay: float = option(0.02, "weight decay; biases and norms have none")
    warmup: float = option(0.1, "share of all steps over which the learning rate rises")
    optimizer: str = option("adamw", "any optimiser name of timm")
    label_smoothing: float = option(0.0, "label smoothing of the training loss")
    seed: int = option(0, "seed of the weights, the splits, the batches and the augmentation")
    workers: int = option(0, "processes that read images; 0 reads them in the training process")
    # Data
    resident: str = option("auto", "keep decoded images in memory: auto (up to 4 GiB), yes or no (workers read them)")
    flip: bool = option(False, "mirror half of the training images (batched; beside --augment)")
    pad_crop: int = option(0, "translate training images by up to so many pixels, the border by reflection")
    cutout: int = option(0, "side of a square that is cut out of every training image, in pixels")
    normalize: str = option("model", "mean and deviation: the model's, or data: those of the training images")
    bad_images: str = option("stop", "images that cannot be read: stop the run, or skip (named and counted)")
    accelerator: str = option("auto", "auto, cpu, gpu, mps or tpu")
    precision: str = option("32", "32, 64, bf16-mixed or 16-mixed")
    out: str = option(
        "runs/default", "folder of the run: settings.yaml, splits.json, result.json, last.ckpt, best.ckpt"
    )
    resume: bool = option(False, "go on with the run in --out")
    progress: bool = option(True, "show progress bars")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong; nothing is read but the existence of folders."""
        from ..models import LAYERS, parse_candidates, parse_similarity
        from ..models.backbones import STEMS
        from ..models.layers import INITS

        parse_candidates(self.candidates)
        parse_similarity(self.similarity or "cosine")
        _check_data(self)
        check_data_options(self)
        for field, minimum in (("k", 1), ("epochs", 1), ("batch_size", 1), ("seed", 0), ("workers", 0)):
            check_whole(field, getattr(self, field), minimum)
        check_whole("image_size", self.image_size, 1, optional=True)
        for field in ("branch_ratio", "warmup"):
            check_number(field, getattr(self, field), (0.0, 1.0), words="in [0, 1]")
        check_number("lr", self.lr, (5e-324, math.inf), words="above 0")
        check_number("weight_decay", self.weight_decay, (0.0, math.inf), words="of at least 0")
        check_number("label_smoothing", self.label_smoothing, (0.0, 0.999), words="in [0, 1)")
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
        check_folder("out", self.out)


def _check_data(settings: TrainSettings) -> None:
    data = settings.data
    if not data:
        raise invalid("data", "a folder of images or a dataset name of timm", "nothing", "give --data PATH")
    if not is_named(data) and not Path(data).is_dir():
        fix = "check the path (a folder), or give a name of timm: torch/cifar10, hfds/..., hfids/..., tfds/..., wds/..."
        got = f"{data!r}, which is a file" if Path(data).exists() else repr(data)
        raise invalid("data", "a folder that exists", got, fix)
    for field in ("val_fraction", "test_fraction"):
        check_number(field, getattr(settings, field), (1e-9, 0.9), words="above 0 and at most 0.9")
    if settings.val_fraction + settings.test_fraction >= 1:
        got = f"{settings.val_fraction} + {settings.test_fraction}"
        raise invalid("val_fraction", "val_fraction + test_fraction below 1", got, "leave some images to train on")


def is_named(data: str) -> bool:
    """Return True if ``data`` is a dataset name of timm, such as ``torch/cifar10``, and not a folder.

    >>> is_named("torch/cifar10"), is_named("images/flowers")
    (True, False)
    """
    return (
        data.split("/", maxsplit=1)[0].lower() in ("torch", "hfds", "hfids", "tfds", "wds") and not Path(data).is_dir()
    )


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
