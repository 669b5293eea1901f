"""Where and with what a record was made."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path

import torch

from .. import __version__


def machine() -> dict[str, str | int]:
    """Say what computes here."""
    names = [line.split(":")[1].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "convnn": __version__,
        "dtype": "float32",
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
