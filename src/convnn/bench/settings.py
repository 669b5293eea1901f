"""What ``convnn bench`` can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import invalid


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Settings of ``convnn bench``."""

    full: bool = _option(False, "every shape (about half an hour) instead of one a question (under 2 minutes)")
    only: str = _option("", "only the cases of all shapes whose names hold this, e.g. 'random 32' or 8x64x56")
    processes: int = _option(3, "processes a case; a figure is the median over them")
    seconds: float = _option(0.3, "how long a pair of steps is timed in a process, each at least 3 times")
    turn: float = _option(
        0.05,
        "seconds that one of a pair runs before the other does; 0: step by step, with the cache as the other left it",
    )
    memory: bool = _option(True, "measure also the rise of memory of one step, in fresh processes")
    tuned_allocator: bool = _option(
        False, "run under glibc with an allocator that keeps its memory: flatters the other"
    )
    json: str = _option("", "write the record to this file, after every case")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong."""
        from .cases import cases

        if self.only and not any(self.only in name for name in cases()):
            shown = ", ".join(sorted({name.split("/")[0] for name in cases()}))
            raise invalid("only", "a part of a case's name", repr(self.only), f"the questions are: {shown}")
        if self.processes < 1:
            raise invalid("processes", "a whole number of at least 1", self.processes, "raise it")
        if not 0 < self.seconds < float("inf"):
            raise invalid("seconds", "a number above 0", self.seconds, "change it")
        if not 0 <= self.turn < float("inf"):
            raise invalid("turn", "a number of at least 0", self.turn, "change it")
        if self.json and not Path(self.json).absolute().parent.is_dir():
            raise invalid("json", "a file in a folder that exists", repr(self.json), "make the folder first")
