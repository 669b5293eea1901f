"""What does reading cost? `python benchmarks/bench_data.py`, and with --shards; --data FOLDER takes images of your own.

Without options: the time of a batch of images in memory, from numbers to augmented and normalized images (flip,
translation, cutout), divided by the time of a training step of a small network (three convolutions of 64 channels, 128
images of 32 x 32 pixels). The median of 5 rounds, which alternate, of 10 batches each.

With --shards: 20,000 generated JPEGs of 160 x 160 pixels in 20 shards, cropped to 128 and flipped by worker processes:
images a second and the largest resident memory of all processes, at each tenth of an epoch.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from convnn.bench.machine import machine
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.data import open_data
from convnn.train.data.augment import draw

ROUNDS, BATCHES = 5, 10
IMAGES, SHARDS = 20_000, 20


def network() -> nn.Module:
    """Return the small network whose step reading is compared with."""
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10))


def jpegs(count: int, side: int) -> Iterator[bytes]:
    """Yield JPEGs of smooth noise, each another one."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        small = generator.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
        yield buffer.getvalue()


def write_shards(folder: Path, count: int, side: int, shards: int) -> None:
    """Write images of ten classes as shards."""
    folder.mkdir(parents=True, exist_ok=True)
    made = jpegs(count, side)
    for part in range(shards):
        with tarfile.open(folder / f"{part:04}.tar", "w") as shard:
            for number in range(part * count // shards, (part + 1) * count // shards):
                for ending, content in (("jpg", next(made)), ("cls", str(number % 10).encode())):
                    info = tarfile.TarInfo(f"{number:06}.{ending}")
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))


def resident(data: str) -> dict[str, float]:
    """Return the seconds of reading a batch and of training on it, and their ratio."""
    settings = TrainSettings(
        data=data, augment="none", flip=True, pad_crop=4, cutout=8, batch_size=128, resident="yes", progress=False
    )
    opened = open_data(settings, InputConfig(32))
    start = time.perf_counter()
    loader = opened.train_dataloader()
    decoding = time.perf_counter() - start
    count = len(loader.split.labels)  # type: ignore[attr-defined]
    model, loss = network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def read(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = opened.on_after_batch_transfer(batch, 0)
        return opened.augment(images, draw(len(images))), labels

    reading, steps = [], []
    for _ in range(ROUNDS + 1):
        batches = iter(loader)
        start = time.perf_counter()
        ready = [read(next(batches)) for _ in range(BATCHES)]
        reading.append((time.perf_counter() - start) / BATCHES)
        start = time.perf_counter()
        for images, labels in ready:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
        steps.append((time.perf_counter() - start) / BATCHES)
    read_s, step_s = (statistics.median(values[1:]) for values in (reading, steps))  # the first round warms up
    return {
        "images": count, "decode_once_s": decoding, "read_s": read_s, "step_s": step_s,
        "ratio": read_s / step_s,
    }  # fmt: skip


def resident_memory() -> float:
    """Return the MiB that this process and its workers hold for themselves, shared pages counted once."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if str(os.getpid()) in (fields["Pid"].strip(), fields["PPid"].strip()):
                rollup = (status.parent / "smaps_rollup").read_text()
                total += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, KeyError, ValueError):
            continue  # a process that has ended meanwhile
    return total / 1024


def streamed(folder: Path, workers: int) -> list[dict[str, float]]:
    """Read two epochs of shards; return images a second and memory at each tenth."""
    settings = TrainSettings(
        data=str(folder), augment="light", batch_size=100, workers=workers, resident="no", progress=False
    )
    start = time.perf_counter()
    data = open_data(settings, InputConfig(128))
    print(
        f"index of {sum(count or 0 for count in data.counts().values()):,} images: {time.perf_counter() - start:.1f} s"
    )
    rows = []
    for epoch in range(2):
        loader = data.train_dataloader()
        tenth, read, start = len(loader) // 10, 0, time.perf_counter()
        for number, (_, labels) in enumerate(loader, start=1):
            read += len(labels)
            if number % tenth == 0:
                row = {"epoch": epoch, "images": read, "images_s": read / (time.perf_counter() - start)}
                rows.append({**row, "mib": resident_memory()})
                print("  ".join(f"{name} {value:,.0f}" for name, value in rows[-1].items()), flush=True)
                read, start = 0, time.perf_counter()
    return rows


def main() -> None:
    """Measure, show, and write what was found where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record to this file")
    parser.add_argument("--data", help="folder of images to keep in memory; default: 5,000 generated ones")
    parser.add_argument("--shards", action="store_true", help="measure shards that workers read")
    parser.add_argument("--workers", type=int, default=2, help="worker processes for --shards")
    arguments = parser.parse_args()
    record = {"command": f"python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}".strip(), **machine()}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.shards:
            write_shards(Path(folder), IMAGES, 160, SHARDS)
            record["rows"] = streamed(Path(folder), arguments.workers)
        else:
            if arguments.data is None:
                write_shards(Path(folder), 5_000, 32, 1)
            found = resident(arguments.data or folder)
            print("  ".join(f"{name} {value:.4g}" for name, value in found.items()))
            print(f"reading takes {100 * found['ratio']:.1f} % of a step")
            record.update(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
