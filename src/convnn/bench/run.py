"""``convnn bench``: measure the selected cases, print each, and write a record."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from .._utils.files import to_json
from .cases import SMALL, cases
from .machine import machine
from .measure import WAYS, measure, measure_memory, tune_allocator
from .settings import BenchSettings

HEAD = f"{'case':42} {'way':17} {'ours ms':>9} {'other ms':>9}  ours / other (range over processes)"


def run_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure, print a line for each way of every case, write the record to ``json``, and return it."""
    if settings.tuned_allocator:
        tune_allocator()
    names = selected(settings)
    record: dict[str, Any] = {"command": shlex.join(["convnn", *sys.argv[1:]]), **machine()}
    record |= {
        "processes": settings.processes,
        "seconds": settings.seconds,
        "turn": settings.turn,
        "tuned_allocator": settings.tuned_allocator,
    }
    print(", ".join(f"{key} {value}" for key, value in record.items() if key != "command"))
    print(HEAD, flush=True)
    record["cases"] = {}
    for name in names:
        result = measure(name, processes=settings.processes, seconds=settings.seconds, turn=settings.turn)
        if settings.memory:
            result["extra_mib"] = measure_memory(name)
        record["cases"][name] = result
        print(lines(name, result), flush=True)
        if settings.json:
            Path(settings.json).write_text(to_json(record, indent=1) + "\n", encoding="utf-8")
    return record


def selected(settings: BenchSettings) -> list[str]:
    """Return the names of the cases to measure."""
    if settings.only:
        return [name for name in cases() if settings.only in name]
    return [name for name in cases() if settings.full or name.endswith(SMALL)]


def lines(name: str, result: dict[str, Any]) -> str:
    """Write the result of a case: a line for each way, and one for memory."""
    written = []
    for way in (way for way in WAYS if way in result):
        timed = result[way]
        low, high = timed["ratio_range"]
        times = f"{timed['ours_ms']:9.2f} {timed['theirs_ms']:9.2f}"
        written.append(f"{name:42} {way:17} {times}  {timed['ratio']:6.2f} ({low:.2f} to {high:.2f})")
    memory = result.get("extra_mib", {})
    if memory.get("ours") is not None:
        written.append(f"{name:42} {'extra MiB':17} {memory['ours']:9.1f} {memory['theirs']:9.1f}")
    return "\n".join(written)
