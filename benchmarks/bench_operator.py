"""What does the operator cost beside the convolution that it stands for? `make bench`, or with --json FILE.

Times `knn_aggregate` (cosine, k = 9, the general implementation) with all candidates and with 32 random ones, and
`nn.Conv2d` (3x3), on random maps: forward, and forward with backward. Prints medians, quartiles and ratios. They are
those of one process: run it more than once before believing a difference below a quarter.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import convnn

SHAPES = [(4, 64, 16), (4, 64, 32), (4, 128, 16)]  # batch, channels, side of the square map
K = 9
CANDIDATES = {"all": "all", "random 32": convnn.Random(32, generator=0)}


def timed(step: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Milliseconds of `step`: median and quartiles over the repeats, after two for warming up."""
    for _ in range(2):
        step()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        samples.append((time.perf_counter() - start) * 1e3)
    low, median, high = statistics.quantiles(samples, n=4)
    return {"median_ms": median, "low_ms": low, "high_ms": high}


def both_ways(forward: Callable[[], torch.Tensor], repeats: int) -> dict[str, dict[str, float]]:
    """Time the forward pass without gradients, and forward with backward."""

    def backward() -> None:
        forward().sum().backward()

    with torch.no_grad():
        alone = timed(forward, repeats)
    return {"forward": alone, "forward+backward": timed(backward, repeats)}


def measure(shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Time the convolution and the operator on one shape."""
    torch.manual_seed(0)
    batch, channels, side = shape
    image = torch.randn(batch, channels, side, side, requires_grad=True)
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    tokens = image.detach().flatten(2).transpose(1, 2).contiguous().requires_grad_()
    weight = (torch.randn(channels, channels, K) / (channels * K) ** 0.5).requires_grad_()
    times = {"conv2d 3x3": both_ways(lambda: conv(image), repeats)}
    for name, candidates in CANDIDATES.items():

        def operator(candidates: Any = candidates) -> torch.Tensor:
            return convnn.knn_aggregate(tokens, tokens, tokens, weight, k=K, candidates=candidates, impl="dense")

        times[f"ConvNN {name}"] = both_ways(operator, repeats)
    return {"shape": shape, "times": times}


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table: one line a shape and layer."""
    print(
        f"{'(B, C, H = W)':16} {'layer':18} {'forward ms':>24} {'x conv':>7} {'forward+backward ms':>24} {'x conv':>7}"
    )
    for row in rows:
        base = row["times"]["conv2d 3x3"]
        for name, times in row["times"].items():
            line = f"{tuple(row['shape'])!s:16} {name:18}"
            for way in ("forward", "forward+backward"):
                t = times[way]
                ratio = t["median_ms"] / base[way]["median_ms"]
                line += f" {t['median_ms']:9.2f} ({t['low_ms']:.2f} to {t['high_ms']:.2f})".ljust(26) + f"{ratio:6.1f}"
            print(line, flush=True)


def main() -> None:
    """Measure every shape and show the table, and write it where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of each (default: 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = {
        "torch": torch.__version__,
        "convnn": convnn.__version__,
        "python": platform.python_version(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "repeats": arguments.repeats,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    rows = [measure(shape, arguments.repeats) for shape in SHAPES]
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "k": K, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
