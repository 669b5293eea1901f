"""Milliseconds of a forward pass, in whole and layer by layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._utils.modules import evaluating
from .tracking import ModuleRow, Plan, Tracker


class Times(NamedTuple):
    """Milliseconds of ``runs`` forward passes: the whole ones, and the median of every unit by itself."""

    whole: list[float]
    units: list[float]

    @property
    def median(self) -> float:
        """The median of the whole passes."""
        return statistics.median(self.whole)


def forward_times(model: nn.Module, inputs: Sequence[Tensor], plan: Plan, *, runs: int) -> Times:
    """Time forward passes in eval mode without gradients, after one to warm up.

    The whole passes are timed without hooks, as many others with them; what a unit's children take is theirs alone.
    """
    device = inputs[0].device
    with torch.no_grad(), evaluating(model):
        model(*inputs)
        whole = []
        for _ in range(runs):
            _wait(device)
            start = time.perf_counter()
            model(*inputs)
            _wait(device)
            whole.append(1e3 * (time.perf_counter() - start))
        by_unit = [_run_by_unit(model, inputs, plan) for _ in range(runs)]
    return Times(whole, [statistics.median(unit) for unit in zip(*by_unit, strict=True)])


def _run_by_unit(model: nn.Module, inputs: Sequence[Tensor], plan: Plan) -> list[float]:
    device, spent = inputs[0].device, [0.0 for _ in plan.units]
    running: list[int] = []
    last = 0.0

    def switch() -> None:
        """Give the time since the last change to the unit that was running."""
        nonlocal last
        _wait(device)
        now = time.perf_counter()
        if running:
            spent[running[-1]] += 1e3 * (now - last)
        last = now

    def entered(row: ModuleRow) -> None:
        switch()
        running.append(row.unit)

    def left(_: ModuleRow) -> None:
        switch()
        running.pop()

    with Tracker(plan, entered=entered, left=left):
        model(*inputs)
    return spent


def _wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
