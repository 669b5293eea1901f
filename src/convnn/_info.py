"""``convnn info``: what is installed, and what of it runs on this machine."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from ._utils.settings import option
from .errors import invalid


@dataclass(frozen=True, kw_only=True)
class InfoSettings:
    """Settings of ``convnn info``."""

    json: str = option("", "file to write everything to; - for the terminal, instead of the text")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong."""
        path = Path(self.json)
        if self.json and self.json != "-" and (path.is_dir() or not path.absolute().parent.is_dir()):
            fix = "name a file in a folder that exists, or - for the terminal"
            raise invalid("json", "a file that can be written", repr(self.json), fix)


def run_info(settings: InfoSettings) -> None:
    """Print what is installed, or write it as JSON."""
    from ._utils.files import to_json, write_json

    found = info()
    if settings.json == "-":
        print(to_json(found))
        return
    print(_text(found))
    if settings.json:
        write_json(Path(settings.json), found)


def info() -> dict[str, Any]:
    """Return versions, the native library, threads and extras, without the names of user, host and folders.

    >>> sorted(info())
    ['extras', 'native', 'threads', 'versions']
    """
    import torch

    versions = {"convnn": __version__, "Python": platform.python_version(), "PyTorch": torch.__version__}
    return {"versions": versions, "native": _native(), "threads": torch.get_num_threads(), "extras": extras()}


def _native() -> dict[str, Any]:
    from . import native
    from .native import build

    record = build.read_record()
    return {
        "level": native.level(),
        "why_not": native.why_not(),
        "levels": native.levels(),
        "compiler": record.compiler if record else None,
        "on_torch_threads": native.on_torch_threads(),
    }


def extras() -> dict[str, list[str]]:
    """Return the extras of convnn, each with the packages that it wants and that are not installed.

    >>> all(isinstance(missing, list) for missing in extras().values())
    True
    """
    try:
        wanted = importlib.metadata.requires("convnn") or []
    except importlib.metadata.PackageNotFoundError:  # run from its sources, without an installation
        return {}
    direct: dict[str, list[str]] = {}
    for requirement in wanted:
        extra = re.search(r"""extra == ["']([\w-]+)["']""", requirement)
        if extra:
            direct.setdefault(extra[1], []).append(re.split(r"[\s;<>=!~]", requirement, maxsplit=1)[0])
    return {extra: sorted(filter(_is_missing, _packages(extra, direct))) for extra in direct}


def _packages(extra: str, direct: dict[str, list[str]]) -> set[str]:
    """Return the packages of an extra, and of those that it names as ``convnn[cli]``."""
    found: set[str] = set()
    for name in direct[extra]:
        inner = re.fullmatch(r"convnn\[(.*)\]", name)
        if inner is None:
            found.add(name.partition("[")[0])
            continue
        for other in inner[1].split(","):
            found |= _packages(other, direct)
    return found


def _is_missing(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return True
    return False


def _text(found: dict[str, Any]) -> str:
    native, width = found["native"], 10
    rows = [(name, version) for name, version in found["versions"].items()]
    if native["why_not"] is None:
        rows.append(("native", f"{native['level']}, compiled by {native['compiler']}"))
        rows += [("", f"{name}: {reason or 'available'}") for name, reason in native["levels"].items()]
    else:
        rows.append(("native", f"not in use: {native['why_not']}"))
    own = native["why_not"] is None and not native["on_torch_threads"]
    rows.append(("threads", f"{found['threads']}{', for native kernels threads of their own' if own else ''}"))
    said = [f"{n}: missing {', '.join(m)}" if m else f"{n}: installed" for n, m in found["extras"].items()]
    rows += [("" if position else "extras", text) for position, text in enumerate(said)]
    return "\n".join(f"{name.ljust(width)}{text}" for name, text in rows)
