"""Provenance of a result: machine, versions, date and command line."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

PACKAGES = ("torch", "convnn", "lightning", "timm", "torchmetrics", "torchvision", "scikit-learn", "numpy")


def provenance() -> dict[str, str]:
    """Return the provenance of a result by name, without the names of user, host and folders.

    >>> provenance()["torch"] == torch.__version__
    True
    """
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command_line(),
        "machine": f"{processor()}, {os.cpu_count()} logical cores",
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **commit(),
        **{name: version for name, version in versions.items() if version},
    }


def command_line() -> str:
    """Return the command line, with the program's name instead of its path."""
    program = Path(sys.argv[0]).name
    return shlex.join(["convnn" if program == "cli.py" else program, *sys.argv[1:]])


def commit() -> dict[str, str]:
    """Return the git commit of the package's source, marked if files differ from it; nothing outside a checkout."""
    source = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
        tracked = subprocess.run(
            ["git", "-C", str(source), "ls-files", "--error-unmatch", "__init__.py"],
            capture_output=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    found = done.returncode == 0 and tracked.returncode == 0  # and not that of a folder around an environment
    return {"commit": done.stdout.strip()} if found else {}


def _version(package: str) -> str:
    if package == "torch":
        return torch.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """Return the name of the processor, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
