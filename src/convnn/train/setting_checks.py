"""Checks of a run's settings: each value alone, then what does not go together. Nothing is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._utils.settings import check_folder, check_number, check_whole
from ..errors import ConvNNError, invalid, unknown_name

AUGMENTATIONS = ("none", "light", "strong")
ACCELERATORS = ("auto", "cpu", "gpu", "mps", "tpu")
PRECISIONS = ("32", "64", "bf16-mixed", "16-mixed")
SCHEDULES = ("cosine", "linear", "constant")
STRATEGIES = ("auto", "ddp", "fsdp")
VIEWS = ("one", "mirrored", "shifted")
ANY_LIMIT = math.inf
WHOLE = {
    "k": 1, "epochs": 1, "eval_every": 1, "batch_size": 1, "accumulate": 1, "seed": 0, "workers": 0, "num_nodes": 1,
}  # fmt: skip
"""The smallest value of the settings that are whole numbers."""
NUMBERS = {
    "branch_ratio": (0.0, 1.0, "in [0, 1]"),
    "warmup": (0.0, 1.0, "in [0, 1]"),
    "lr": (5e-324, ANY_LIMIT, "above 0"),
    "min_lr": (0.0, ANY_LIMIT, "of at least 0"),
    "momentum": (0.0, 0.999999, "in [0, 1)"),
    "weight_decay": (0.0, ANY_LIMIT, "of at least 0"),
    "clip_grad": (0.0, ANY_LIMIT, "of at least 0"),
    "label_smoothing": (0.0, 0.999, "in [0, 1)"),
    "mixup": (0.0, ANY_LIMIT, "of at least 0"),
    "cutmix": (0.0, ANY_LIMIT, "of at least 0"),
    "mix_prob": (0.0, 1.0, "in [0, 1]"),
    "dropout": (0.0, 0.999, "in [0, 1)"),
    "drop_path": (0.0, 0.999, "in [0, 1)"),
    "ema": (0.0, 0.9999999, "in [0, 1)"),
    "checkpoint_minutes": (0.0, ANY_LIMIT, "of at least 0"),
}
"""The limits of the settings that are numbers, and these limits in words."""


def check_settings(settings: Any) -> None:
    """Raise ConvNNError for the first field of ``TrainSettings`` that is wrong, or that another one rules out."""
    from ..models import LAYERS, parse_candidates, parse_similarity
    from ..models.backbones import STEMS
    from ..models.layers import INITS

    parse_candidates(settings.candidates)
    parse_similarity(settings.similarity or "cosine")
    for field, minimum in WHOLE.items():
        check_whole(field, getattr(settings, field), minimum)
    for field, minimum in (("image_size", 1), ("max_steps", 1), ("warmup_steps", 0)):
        check_whole(field, getattr(settings, field), minimum, optional=True)
    for field, (low, high, words) in NUMBERS.items():
        check_number(field, getattr(settings, field), (low, high), words=words)
    for field, high in (("eps", ANY_LIMIT), ("layer_decay", 1.0)):
        if getattr(settings, field) is not None:
            words = "above 0" + (" and at most 1" if high == 1.0 else "")
            check_number(field, getattr(settings, field), (5e-324, high), words=words)
    if settings.channels not in (1, 3):
        raise invalid("channels", "1 (grey) or 3 (colour)", settings.channels, "use 3 if in doubt")
    for field, allowed in (
        ("layer", tuple(LAYERS)),
        ("init", INITS),
        ("stem", ("", *STEMS)),
        ("augment", AUGMENTATIONS),
        ("accelerator", ACCELERATORS),
        ("precision", PRECISIONS),
        ("schedule", SCHEDULES),
        ("strategy", STRATEGIES),
        ("views", VIEWS),
    ):
        if getattr(settings, field) not in allowed:
            raise unknown_name(field, getattr(settings, field), allowed)
    check_folder("out", settings.out)
    _check_lists(settings)
    _check_together(settings)
    _check_devices(settings)


def _check_lists(settings: Any) -> None:
    seeds = seeds_of(settings.seeds)
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
        raise invalid("seeds", "different whole numbers of at least 0", repr(settings.seeds), "e.g. 0,1,2")
    betas = betas_of(settings.betas)
    if not all(0 <= beta < 1 for beta in betas):
        raise invalid("betas", "numbers in [0, 1)", repr(settings.betas), "e.g. 0.9,0.999")
    names_of(settings.freeze)


def seeds_of(value: Sequence[int] | str) -> list[int]:
    """Return seeds, given as a list or as text.

    >>> seeds_of("0,1,2"), seeds_of([3]), seeds_of("")
    ([0, 1, 2], [3], [])
    """
    return _listed("seeds", value, int, "0,1,2")


def betas_of(value: Sequence[float] | str) -> list[float]:
    """Return an optimiser's betas, given as a list or as text.

    >>> betas_of("0.9, 0.95")
    [0.9, 0.95]
    """
    return _listed("betas", value, float, "0.9,0.999")


def names_of(value: Sequence[str] | str) -> list[str]:
    """Return patterns of names, given as a list or as text.

    >>> names_of("stem.*,head.bias")
    ['stem.*', 'head.bias']
    """
    return _listed("freeze", value, str, "stem.*,stages.0.*")


def _listed(field: str, value: Any, kind: Any, example: str) -> list[Any]:
    parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    try:
        read = [kind(part) for part in parts]
    except (TypeError, ValueError) as error:
        raise invalid(field, f"a list such as {example}", repr(value), "change it") from error
    return read


def _check_together(settings: Any) -> None:
    """Raise ConvNNError for settings of which one makes no sense beside another."""
    mixes = settings.mixup > 0 or settings.cutmix > 0
    if mixes and settings.batch_size < 2:
        raise invalid("batch_size", "at least 2 (mixup and CutMix mix images)", settings.batch_size, "raise it")
    if settings.min_lr > settings.lr:
        raise invalid("min_lr", f"at most lr ({settings.lr})", settings.min_lr, "lower it")
    if settings.max_steps is not None and (settings.warmup_steps or 0) > settings.max_steps:
        expected = f"at most max_steps ({settings.max_steps})"
        raise invalid("warmup_steps", expected, settings.warmup_steps, "lower it")
    if settings.decay_all and settings.layer_decay is not None:
        got = "True beside layer_decay"
        raise invalid("decay_all", "False (layer groups leave biases and norms out)", got, "leave one of them out")
    if settings.ema_warmup and not settings.ema:
        raise invalid("ema_warmup", "False without ema", True, "give ema too, e.g. 0.999")
    if settings.weights and not Path(settings.weights).is_file():
        raise invalid("weights", "a file that exists", repr(settings.weights), "check the path")
    if settings.seeds and settings.seed:
        raise invalid("seed", "none beside seeds", settings.seed, "leave one of them out")
    if settings.resume and settings.auto_resume:
        raise invalid("auto_resume", "False beside resume", True, "leave one of them out")


def _check_devices(settings: Any) -> None:
    """Raise ConvNNError for devices that are not there, and for what they cannot do."""
    import torch

    gpus = settings.accelerator == "gpu" or (settings.accelerator == "auto" and torch.cuda.is_available())
    if settings.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise invalid("accelerator", "one that this machine has", "'gpu' (torch finds none)", "use auto or cpu")
    if settings.precision == "16-mixed" and not gpus:
        raise _needs_gpu("precision", "'16-mixed'", "use bf16-mixed or 32")
    if settings.strategy == "fsdp" and not gpus:
        raise _needs_gpu("strategy", "'fsdp'", "use ddp")
    if settings.sync_batchnorm and not gpus:
        raise _needs_gpu("sync_batchnorm", "True", "leave it out")
    if settings.strategy == "fsdp":
        for field, value in (("ema", settings.ema), ("clip_grad", settings.clip_grad), ("freeze", settings.freeze)):
            if value:
                raise invalid(field, "none with strategy fsdp (weights are in shards)", repr(value), "use ddp")
    devices = str(settings.devices)
    if devices != "auto" and not (devices.isdigit() and int(devices) > 0):
        raise invalid("devices", "auto or a whole number of at least 1", repr(settings.devices), "use auto if in doubt")
    if processes(settings) > settings.batch_size:
        expected = f"at least {processes(settings)}, an image for each process"
        raise invalid("batch_size", expected, settings.batch_size, "raise it, or use fewer devices")


def processes(settings: Any) -> int:
    """Return how many processes a run has, as far as its settings say."""
    devices = str(settings.devices)
    return (int(devices) if devices.isdigit() else 1) * int(settings.num_nodes)


def _needs_gpu(field: str, got: str, fix: str) -> ConvNNError:
    return invalid(field, "one that the device can do", f"{got}, which needs a GPU", fix)
