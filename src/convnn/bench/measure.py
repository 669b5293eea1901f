"""Measurement of a case: alternating times, and the rise of memory, each in its own process."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .cases import Case, cases
from .steps import Step

WAYS = {"forward": False, "forward+backward": True}
TUNED_ALLOCATOR = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
"""Keeps large blocks in the process instead of asking the system for fresh pages at every call."""

Result = dict[str, Any]


def measure(name: str, *, processes: int, seconds: float, turn: float) -> Result:
    """Time a case in several processes, one after the other; a way is ``forward`` or ``forward+backward``.

    A ratio is time of ours / time of theirs: the median over processes, with its range. The time of a
    convolution varies from process to process: ours are compared with the fastest, and ``ratio_in_process`` is the
    median of the ratios within one process.
    """
    case = cases()[name]
    runs = [_in_fresh_process(_time, name, seconds, turn) for _ in range(processes)]
    result: Result = {"against": case.against}
    for way in _ways(case):
        ours = [run[way][0] for run in runs]
        theirs = [run[way][1] for run in runs]
        figure = min(theirs) if case.against == "nn.Conv2d" else None
        ratios = [a / (figure or b) for a, b in zip(ours, theirs, strict=True)]
        result[way] = {
            "ours_ms": statistics.median(ours),
            "theirs_ms": figure or statistics.median(theirs),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
        if figure:
            result[way]["ratio_in_process"] = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return result


def measure_memory(name: str) -> Result:
    """Return the MiB by which one step, forward and backward, raises the largest resident memory of a fresh process."""
    return {side: _in_fresh_process(_rise, name, side) for side in ("ours", "theirs")}


def _ways(case: Case) -> list[str]:
    return list(WAYS) if case.both else ["forward"]


def _in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a process that has imported torch, its compiler too, and done nothing else."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        # The first custom operator of a process imports the compiler, which takes seconds: once for all of them.
        context.set_forkserver_preload(["torch", "torch._dynamo", __name__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def tune_allocator() -> None:
    """Let the processes to come run with a tuned allocator (glibc only); call it before the first one."""
    os.environ["GLIBC_TUNABLES"] = TUNED_ALLOCATOR


_LARGE_BLOCK = 31 << 20
"""Bytes: glibc learns from the release of blocks of up to 32 MiB."""


def settle_allocator() -> None:
    """Free a large block, as processes that handle images soon do.

    Until then glibc returns freed memory to the system, and every step allocates it again page by page; afterwards it
    keeps up to twice that block's size. In a fresh process either may happen, and a convolution would have two speeds.
    """
    block = torch.empty(_LARGE_BLOCK, dtype=torch.uint8)
    del block


def _time(name: str, seconds: float, turn: float) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    settle_allocator()
    case = cases()[name]
    return {
        way: in_turn(case.ours(WAYS[way]), case.theirs(WAYS[way]), seconds=seconds, turn=turn) for way in _ways(case)
    }


def in_turn(ours: Step, theirs: Step, *, seconds: float, turn: float) -> tuple[float, float]:
    """Return the median milliseconds of two steps, at least 3 of each after a first, timed for some seconds in all.

    Each runs for ``turn`` seconds in a row, at least once, and reuses what it left in the cache; at 0 the steps
    alternate.
    """
    ours()
    theirs()
    our_times: list[float] = []
    their_times: list[float] = []
    began = time.perf_counter()
    while len(our_times) < 3 or len(their_times) < 3 or time.perf_counter() - began < seconds:
        our_times += _times(ours, turn)
        their_times += _times(theirs, turn)
    return statistics.median(our_times), statistics.median(their_times)


def _times(step: Step, seconds: float) -> list[float]:
    """Run a step for some seconds, at least once, and return the milliseconds of each time."""
    times: list[float] = []
    began = ended = time.perf_counter()
    while not times or ended - began < seconds:
        start = time.perf_counter()
        step()
        ended = time.perf_counter()
        times.append((ended - start) * 1e3)
    return times


def _rise(name: str, side: str) -> float | None:
    """Return the rise in MiB of one step, or None where the system does not report it (Linux does)."""
    torch.manual_seed(0)
    case = cases()[name]
    step = getattr(case, side)(case.both)
    step()  # one-time loading
    before = forget_peak()
    if before is None:
        return None
    step()
    return round(resident("VmHWM") - before, 1)


def forget_peak() -> float | None:
    """Release freed memory, reset the peak of resident memory, and return the resident MiB."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return resident("VmRSS")
    except (AttributeError, OSError):
        return None


def resident(name: str) -> float:
    """Return the MiB of this process by a name of Linux: VmRSS is what is resident, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024
