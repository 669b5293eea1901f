"""How much memory does a step need beside its input? `python benchmarks/bench_memory.py`, with --json FILE.

Each figure is the rise of a fresh process's largest resident memory over one forward and backward pass of ConvNN2d(64,
64, 9, candidate_padding=1), all candidates: by the native library, by plain PyTorch in tiles, by plain gather; and of
nn.Conv2d.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from convnn import ConvNN2d
from convnn.bench.machine import machine

SIZES = [(8, 56), (1, 32), (1, 64), (1, 128), (1, 256)]  # samples and side of the map
IMPLEMENTATIONS = {"ours": "native", "tiled": "tiled", "plain": "dense"}
PLAIN_UP_TO = 8 * 56**2 * 56**2  # elements of the N x N matrices that plain gather is asked for


def layer(name: str) -> nn.Module:
    """Make the layer to measure."""
    if name == "conv":
        return nn.Conv2d(64, 64, 3, padding=1)
    return ConvNN2d(64, 64, 9, candidate_padding=1, impl=IMPLEMENTATIONS[name])


def work(name: str, batch: int, side: int) -> None:
    """Measure one layer at one size in this process and print what was found."""
    module = layer(name)
    module(torch.randn(1, 64, 8, 8)).sum().backward()  # loads what is loaded once
    x = torch.randn(batch, 64, side, side, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    module(x).sum().backward()
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"extra_mib": round(rise, 1), "seconds": round(time.perf_counter() - start, 3)}))


def main() -> None:
    """Measure every size, show a table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to this file")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, batch, side = arguments.worker
        work(name, int(batch), int(side))
        return
    record = {"command": f"python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}".strip(), **machine()}
    rows = []
    print(f"{'samples':>7} {'tokens':>7}   extra MiB (seconds): native, in tiles, plain gather, nn.Conv2d")
    for batch, side in SIZES:
        row = {"samples": batch, "tokens": side * side}
        for name in (*IMPLEMENTATIONS, "conv"):
            if name == "plain" and batch * side**4 > PLAIN_UP_TO:
                continue
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, str(batch), str(side)]
            row[name] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        rows.append(row)
        cells = (f"{row[n]['extra_mib']:8.0f} ({row[n]['seconds']:.2f})" if n in row else "       -" for n in
                 (*IMPLEMENTATIONS, "conv"))  # fmt: skip
        print(f"{batch:7} {side * side:7}   " + "  ".join(cells), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({**record, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
