"""How weights are updated: timm's optimisers and schedules, groups of layers, weights that stay as they are."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import invalid, missing_extra, unknown_name

try:
    from timm.data import Mixup
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
    from timm.scheduler import create_scheduler_v2
    from timm.scheduler.scheduler import Scheduler
except ImportError as error:
    raise missing_extra("timm", "train") from error

NORMS = (nn.modules.batchnorm._BatchNorm,)
"""Layers that change in training without a gradient: their running statistics."""


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How weights are updated, in the words of ``TrainSettings``; ``betas`` and ``freeze`` are lists here."""

    lr: float = 1e-3
    schedule: str = "cosine"
    min_lr: float = 0.0
    warmup: float = 0.1
    warmup_steps: int | None = None
    max_steps: int | None = None
    optimizer: str = "adamw"
    momentum: float = 0.9
    betas: list[float] = field(default_factory=list)
    eps: float | None = None
    weight_decay: float = 0.02
    decay_all: bool = False
    layer_decay: float | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0

    def mixer(self, num_classes: int) -> Mixup | None:
        """Return timm's mixup and CutMix, or None where there is none; label smoothing is left to the loss."""
        if not (self.mixup or self.cutmix):
            return None
        made: Any = Mixup  # which has no types
        alphas = {"mixup_alpha": self.mixup, "cutmix_alpha": self.cutmix}
        mixer: Mixup = made(**alphas, prob=self.mix_prob, label_smoothing=0.0, num_classes=num_classes)
        return mixer


def make_optimizer(plan: Optimisation, model: nn.Module) -> torch.optim.Optimizer:
    """Return timm's optimiser over the weights that have a gradient.

    Raises ConvNNError for an optimiser that timm does not know, options that it does not have, and layer groups of a
    model that has none.
    """
    names = [str(name) for name in list_optimizers()]
    if plan.optimizer not in names:
        raise unknown_name("optimizer", plan.optimizer, names)
    info = get_optimizer_info(plan.optimizer)
    options: dict[str, Any] = {}
    if plan.betas:
        if not info.has_betas or (info.num_betas or 2) != len(plan.betas):
            expected = f"{info.num_betas or 2} for {plan.optimizer}" if info.has_betas else f"none for {plan.optimizer}"
            raise invalid("betas", expected, plan.betas, "leave them out, or choose another optimizer")
        options["betas"] = tuple(plan.betas)
    if plan.eps is not None:
        if not info.has_eps:
            raise invalid("eps", f"none for {plan.optimizer}", plan.eps, "leave it out, or choose another optimizer")
        options["eps"] = plan.eps
    try:
        return create_optimizer_v2(
            model,
            opt=plan.optimizer,
            lr=plan.lr,
            weight_decay=plan.weight_decay,
            momentum=plan.momentum,
            filter_bias_and_bn=not plan.decay_all,
            layer_decay=plan.layer_decay,
            **options,
        )
    except AttributeError as error:
        if plan.layer_decay is None:
            raise
        got = f"{plan.layer_decay} for a model without layer groups ({type(model).__name__})"
        raise invalid("layer_decay", "none, or a model of timm", got, "leave it out") from error


def make_schedule(plan: Optimisation, optimizer: torch.optim.Optimizer, total: int) -> Scheduler:
    """Return timm's schedule over ``total`` updates of the weights: a linear warm-up, then ``plan.schedule``.

    >>> weights = torch.nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(weights.parameters(), lr=1.0)
    >>> schedule = make_schedule(Optimisation(lr=1.0, warmup_steps=2, schedule="linear"), optimizer, 6)
    >>> rates = []
    >>> for update in range(7):
    ...     schedule.step_update(update)
    ...     rates.append(optimizer.param_groups[0]["lr"])
    >>> rates
    [0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    rise = round(plan.warmup * total) if plan.warmup_steps is None else min(plan.warmup_steps, total)
    name, power = {"cosine": ("cosine", 0.0), "linear": ("poly", 1.0), "constant": ("constant", 0.0)}[plan.schedule]
    schedule: Scheduler | None
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=max(1, total - rise),  # of one update each
        updates_per_epoch=1,
        step_on_epochs=False,
        warmup_epochs=rise,
        warmup_prefix=True,
        warmup_lr=plan.lr / max(1, rise),
        min_lr=plan.min_lr,
        decay_rate=power or 0.1,
    )
    if schedule is None:
        raise TypeError(f"timm knows no schedule {name!r}")
    return schedule


def freeze(model: nn.Module, patterns: list[str]) -> list[str]:
    """Take the gradient from the weights whose names match a pattern; return these names.

    Batch normalisation all of whose weights are frozen keeps its statistics too: it stays in eval mode. Raises
    ConvNNError for a pattern that matches nothing, and where no weight is left to train.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> freeze(model, ["0.*"])
    ['0.weight', '0.bias']
    """
    weights = dict(model.named_parameters())
    frozen: list[str] = []
    for pattern in patterns:
        found = fnmatch.filter(weights, pattern)
        if not found:
            some = ", ".join(list(weights)[:4])
            raise invalid("freeze", "patterns that match names of weights", repr(pattern), f"names are: {some}, ...")
        frozen += [name for name in found if name not in frozen]
    for name in frozen:
        weights[name].requires_grad_(False)
    if frozen and len(frozen) == len(weights):
        raise invalid("freeze", "patterns that leave weights to train", f"all {len(frozen)} matched", "match fewer")
    for part in model.modules():
        own = list(part.parameters(recurse=False))
        if isinstance(part, NORMS) and own and not any(weight.requires_grad for weight in own):
            part.eval()
    return frozen
