"""The machine, the versions and the native library of a record."""

from __future__ import annotations

import datetime
import platform

import torch

from .. import __version__, native
from .._utils.provenance import processor


def machine() -> dict[str, str | int]:
    """Return the processor, its threads, the level of the native library and the versions, by name."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "native": native.level() or f"off: {native.why_not()}",
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "convnn": __version__,
        "dtype": "float32",
    }
