"""Which process of a run this one is, and how many devices it uses: as torchrun, SLURM and Lightning say it."""

from __future__ import annotations

import os
from typing import Any

RANK = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Variables that hold the number of this process, the most specific first."""


def rank() -> int:
    """Return the number of this process in its run; 0 is the one that writes and prints."""
    return next((int(os.environ[name]) for name in RANK if os.environ.get(name, "").isdigit()), 0)


def devices_of(devices: int | str) -> int | str:
    """Return how many devices Lightning shall use on this machine.

    ``auto`` is what torchrun has started processes for, else all GPUs, or one process on the CPU.
    """
    import torch

    if str(devices) != "auto":
        return int(devices)
    started = os.environ.get("LOCAL_WORLD_SIZE", "")
    if started.isdigit():
        return int(started)
    return "auto" if torch.cuda.is_available() else 1


def strategy_of(name: str) -> Any:
    """Return Lightning's strategy; a sharded model is saved in one file, as any other."""
    if name != "fsdp":
        return name
    from lightning.pytorch.strategies import FSDPStrategy

    return FSDPStrategy(state_dict_type="full")
