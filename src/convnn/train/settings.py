"""The settings of a run: their fields are the options of ``convnn train`` and the keys of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._utils.settings import check_number, option, positional
from ..errors import invalid
from .data.options import check_data_options
from .setting_checks import check_settings

RUNTIME_ONLY = (
    "out", "resume", "auto_resume", "workers", "accelerator", "devices", "num_nodes", "strategy", "download",
    "checkpoint_minutes", "tensorboard", "progress", "json_lines",
)  # fmt: skip
"""Fields that may differ between a run and its resumption: they do not change what is computed."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of ``convnn train``."""

    recipe: str = positional("a name of `convnn recipes`, or a YAML file: the defaults of all options", default="")
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
    model_options: dict[str, Any] | None = option(  # noqa: RUF009 - a field, as the others
        None, "more keywords of create_model, e.g. {pattern: layer4.*}"
    )
    init: str = option("default", "weights of swapped layers: default, random or from_original (where they fit)")
    pretrained: bool = option(False, "start from timm's pretrained weights (loaded before layers are swapped)")
    image_size: int | None = option(None, "side of the square input; default: the model's own")
    channels: int = option(3, "1 reads the images as grey, 3 as colour")
    augment: str = option("light", "none, light (crop and flip) or strong (timm's RandAugment and erasing)")
    epochs: int = option(10, "passes over the training images")
    max_steps: int | None = option(None, "stop after so many updates of the weights, if the epochs have more")
    eval_every: int = option(1, "epochs from one validation to the next; the last epoch always has one")
    batch_size: int = option(64, "images a step, over all processes")
    accumulate: int = option(1, "steps of which the gradients are added up before the weights are updated")
    # how weights are updated
    lr: float = option(1e-3, "highest learning rate")
    schedule: str = option("cosine", "learning rate after the warm-up: cosine or linear down to --min-lr, or constant")
    min_lr: float = option(0.0, "learning rate at the end of cosine and linear")
    warmup: float = option(0.1, "share of all updates over which the learning rate rises")
    warmup_steps: int | None = option(None, "updates over which the learning rate rises, in place of --warmup")
    optimizer: str = option("adamw", "any optimiser name of timm: adamw, sgd (Nesterov), momentum, muon, lamb, ...")
    momentum: float = option(0.9, "momentum of the optimisers that have one")
    betas: tuple[float, ...] | str = option("", "betas of an optimiser that has them, e.g. 0.9,0.95; empty: its own")
    eps: float | None = option(None, "epsilon of the optimisers that have one; default: their own")
    weight_decay: float = option(0.02, "weight decay; biases and norms have none")
    decay_all: bool = option(False, "weight decay of biases and norms too")
    layer_decay: float | None = option(None, "factor of the learning rate from a layer to the one before it (timm)")
    clip_grad: float = option(0.0, "largest norm of the gradient; 0: no limit")
    label_smoothing: float = option(0.0, "label smoothing of the training loss")
    mixup: float = option(0.0, "alpha of mixup; 0: none")
    cutmix: float = option(0.0, "alpha of CutMix; 0: none")
    mix_prob: float = option(1.0, "share of the batches that mixup or CutMix mixes")
    dropout: float = option(0.0, "dropout of the model's head (timm's drop_rate)")
    drop_path: float = option(0.0, "stochastic depth of the model (timm's drop_path_rate)")
    ema: float = option(0.0, "decay of a moving average of the weights, which is then evaluated and saved; 0: none")
    ema_warmup: bool = option(False, "let that decay rise from 0")
    freeze: tuple[str, ...] | str = option("", "weights not to train: patterns of their names, e.g. stem.*,stages.0.*")
    weights: str = option("", "file of the model's pretrained weights, in place of timm's download")
    views: str = option("one", "validate and test by the mean logits of one view, or of several: mirrored or shifted")
    seed: int = option(0, "seed of the weights, the splits, the batches and the augmentation")
    seeds: tuple[int, ...] | str = option("", "several runs, e.g. 0,1,2: each in seed-N of --out, summed up in --out")
    # where and how it runs
    workers: int = option(0, "processes that read images; 0 reads them in the training process")
    # Data
    resident: str = option("auto", "keep decoded images in memory: auto (up to 4 GiB), yes or no (workers read them)")
    flip: bool = option(False, "mirror half of the training images (batched; beside --augment)")
    pad_crop: int = option(0, "translate training images by up to so many pixels, the border by reflection")
    cutout: int = option(0, "side of a square that is cut out of every training image, in pixels")
    normalize: str = option("model", "mean and deviation: the model's, or data: those of the training images")
    bad_images: str = option("stop", "images that cannot be read: stop the run, or skip (named and counted)")
    accelerator: str = option("auto", "auto (the GPUs that there are, else the CPU), cpu, gpu, mps or tpu")
    devices: str = option("auto", "how many devices a machine: a number, or auto (all GPUs, one CPU process)")
    num_nodes: int = option(1, "machines")
    strategy: str = option("auto", "auto, ddp or fsdp (sharded weights; needs GPUs)")
    sync_batchnorm: bool = option(False, "batch normalisation over the images of all processes (needs GPUs)")
    precision: str = option("32", "32, 64, bf16-mixed or 16-mixed (needs a GPU)")
    compile: bool = option(False, "compile the model by torch.compile")
    channels_last: bool = option(False, "keep images and weights in the channels-last memory format")
    # what is written
    out: str = option("runs/default", "folder of the run; docs/training.md lists its files")
    resume: bool = option(False, "go on with the run in --out")
    auto_resume: bool = option(False, "go on with the run in --out if there is one, else start it")
    checkpoint_minutes: float = option(10.0, "minutes from one checkpoint to the next inside an epoch; 0: none")
    tensorboard: bool = option(False, "write TensorBoard's files into --out")
    progress: bool = option(True, "show progress: bars on a terminal, a line an epoch elsewhere")
    json_lines: bool = option(False, "print one JSON object a line, for programs")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong; nothing is read but the existence of files."""
        _check_data(self)
        check_data_options(self)
        check_settings(self)


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
