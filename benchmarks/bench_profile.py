"""Where does the time of a case go? `python benchmarks/bench_profile.py CASE`, with --json FILE.

CASE is a case of `convnn bench`, e.g. "random 32 vs conv/16x64x32" or "ResNet-50 hybrid random 32/8x3x224". First ours,
then the other runs under torch.profiler, forward and backward. For each side: every operator's own milliseconds a step,
the most expensive first, and their sum. The time of `convnn::native_` operators is that of the C kernels in them. The
profiler costs time itself, most where operators are small and many.
"""

import argparse
import json
import shlex
import sys
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from convnn.bench.cases import cases
from convnn.bench.machine import machine
from convnn.bench.measure import settle_allocator
from convnn.bench.steps import Step

SHOWN = 14


def operators(step: Step, steps: int) -> dict[str, float]:
    """Return each operator's own milliseconds a step, the most expensive first."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    own: Counter[str] = Counter()
    for event in profiler.key_averages():
        own[event.key] += event.self_cpu_time_total / 1e3 / steps
    return {name: round(time, 3) for name, time in own.most_common()}


def main() -> None:
    """Profile both sides of a case, show them, and write them where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="a case of convnn bench")
    parser.add_argument("--steps", type=int, default=10, help="how many steps are profiled (10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to this file")
    arguments = parser.parse_args()
    known = cases()
    if arguments.case not in known or arguments.steps < 1:
        parser.error(f"CASE is one of these, and --steps at least 1: {', '.join(known)}")
    case = known[arguments.case]
    torch.manual_seed(0)
    settle_allocator()
    record = {"command": f"python benchmarks/{Path(__file__).name} {shlex.join(sys.argv[1:])}", **machine()}
    for side in ("ours", "theirs"):
        step = getattr(case, side)(case.both)
        for _ in range(3):
            step()
        found = operators(step, arguments.steps)
        record[side] = {"total_ms": round(sum(found.values()), 2), "operators_ms": found}
        print(f"{side if side == 'ours' else case.against}: {sum(found.values()):.2f} ms a step")
        for name, time in list(found.items())[:SHOWN]:
            print(f"  {time:9.3f}  {name}")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
