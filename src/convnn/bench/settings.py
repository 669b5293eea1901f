"""The settings of ``convnn bench``: their fields are the options of the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from .._utils.settings import check_number, option
from ..errors import invalid


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Settings of ``convnn bench``."""

    full: bool = option(False, "every shape (about half an hour) instead of one a question (under 2 minutes)")
    only: str = option("", "only the cases of all shapes whose names hold this, e.g. 'random 32' or 8x64x56")
    processes: int = option(3, "processes a case; a figure is the median over them")
    seconds: float = option(0.3, "how long a pair of steps is timed in a process, each at least 3 times")
    turn: float = option(
        0.05,
        "seconds that one of a pair runs before the other does; 0: step by step, with the cache as the other left it",
    )
    memory: bool = option(True, "measure also the rise of memory of one step, in fresh processes")
    tuned_allocator: bool = option(False, "run under glibc with an allocator that keeps its memory: flatters the other")
    json: str = option("", "write the record to this file, after every case")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong."""
        from .. import _checks as checks
        from .cases import cases

        if self.only and not any(self.only in name for name in cases()):
            shown = ", ".join(sorted({name.split("/")[0] for name in cases()}))
            raise invalid("only", "a part of a case's name", repr(self.only), f"the questions are: {shown}")
        checks.whole("processes", self.processes, fix="raise it")
        check_number("seconds", self.seconds, (5e-324, math.inf), words="above 0")
        check_number("turn", self.turn, (0.0, math.inf), words="of at least 0")
        if self.json and not Path(self.json).absolute().parent.is_dir():
            raise invalid("json", "a file in a folder that exists", repr(self.json), "make the folder first")
