"""How fast is the operator beside what it stands in for? `make bench`; all of it with ARGS="--full --json FILE".

Every case of cases.py is timed in processes of its own: ours and the other in turn, forward and forward with backward.
Printed are the medians over processes of each process's median, and the ratio of times, ours / other, with its range
over the processes. A ratio below 1 says that ours is faster.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cases import SMALL, Step, cases
from machine import machine

WAYS = {"forward": False, "forward+backward": True}


def in_turn(ours: Step, theirs: Step, seconds: float) -> dict[str, float]:
    """Median milliseconds of two steps, run in turn for some seconds, at least 3 times each, after one to warm up."""
    samples: tuple[list[float], list[float]] = ([], [])
    ours(), theirs()
    began = time.perf_counter()
    while len(samples[0]) < 3 or time.perf_counter() - began < seconds:
        for step, kept in zip((ours, theirs), samples, strict=True):
            start = time.perf_counter()
            step()
            kept.append((time.perf_counter() - start) * 1e3)
    return {"ours": statistics.median(samples[0]), "theirs": statistics.median(samples[1])}


def work(name: str, seconds: float) -> None:
    """Time one case in this process and print what was found."""
    torch.manual_seed(0)
    case = cases()[name]
    print(json.dumps({way: in_turn(case.ours(grad), case.theirs(grad), seconds) for way, grad in WAYS.items()}))


def measure(name: str, processes: int, seconds: float) -> dict[str, Any]:
    """Time one case in several processes, one after the other."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, "--seconds", str(seconds)]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(processes)]
    found: dict[str, Any] = {"against": cases()[name].against}
    for way in WAYS:
        ratios = [run[way]["ours"] / run[way]["theirs"] for run in runs]
        found[way] = {
            "ours_ms": statistics.median(run[way]["ours"] for run in runs),
            "theirs_ms": statistics.median(run[way]["theirs"] for run in runs),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """Print one line a way."""
    for way in WAYS:
        t = found[way]
        low, high = t["ratio_range"]
        times = f"{t['ours_ms']:9.2f} {t['theirs_ms']:9.2f}"
        print(f"{name:42} {way:17} {times}  {t['ratio']:6.2f} ({low:.2f} to {high:.2f})", flush=True)


def main() -> None:
    """Measure the chosen cases, show them as they come, and write them where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every shape (half an hour) instead of one a question")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--processes", type=int, default=3, help="processes a case (default: 3)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each pair of steps (default: 0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.seconds)
        return
    names = [n for n in cases() if arguments.only in n and (arguments.full or n.endswith(SMALL))]
    record = {"command": f"python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}".strip(), **machine()}
    record |= {"processes": arguments.processes, "seconds": arguments.seconds, "cases": {}}
    print(", ".join(f"{k} {v}" for k, v in record.items() if k not in ("command", "cases")))
    print(f"{'case':42} {'way':17} {'ours ms':>9} {'other ms':>9}  ours / other (range over processes)", flush=True)
    for name in names:
        record["cases"][name] = measure(name, arguments.processes, arguments.seconds)
        show(name, record["cases"][name])
        if arguments.json:
            arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
