"""Does k-NN attention find one token in a long sequence? `python benchmarks/bench_recall.py --json FILE`.

Associative recall: the first half of a sequence are pairs, each one token, the sum of the embeddings of a key and of a
value. The keys of a sequence differ. The second half are queries, each a key that occurred, drawn with replacement. The
model says the value of every query. There are twice as many keys as pairs and 64 values, so that guessing is right 1 of
64 times. Two blocks (norm, attention, norm, MLP) of width 64 with one head; every token sees every other; no positions.
The attention is full, or exact k-NN attention with softmax weights: the best k of all tokens.

Training ends 50 steps after the accuracy of held-out sequences has reached 99 %, or after --steps. Then accuracy and
loss are those of further sequences. Every length has the same number of tokens a step. With --grow the sequences of the
training have 64 tokens for 100 steps, then twice as many every 20 steps up to their length, and training ends at the
earliest 50 steps after that; held-out sequences have their full length at all times.

Seconds: one process takes a training step with each attention in turn. Memory: the rise of a fresh process's largest
resident memory over one training step.

With --json every result is written when it is there, and a later start goes on behind it. `load` is the machine's load
average when a row began: above the number of threads, other programs ran at the same time.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnn import ConvNNAttention
from convnn.bench.machine import machine
from convnn.bench.measure import forget_peak, resident, settle_allocator

VALUES, WIDTH, LR = 64, 64, 3e-3
STEP_TOKENS, HELD_OUT = 8192, 8192  # tokens of a step; queries of an evaluation
STEPS = {1024: 2000}
SEEDS = {192: 3}
REACHED, EVERY, AFTER = 0.99, 10, 50
LENGTHS = {False: "192,1024", True: "1024,4096"}
SHORTEST, SHORT_STEPS, DOUBLING_STEPS = 64, 100, 20
ROUNDS = 15
TEST_SEED, HELD_OUT_SEED = 1_000_001, 1_000_002
NOTE = "load: load average of the machine when a row began; above the number of threads, other programs ran too"

Record = dict[str, Any]


class Sequences(NamedTuple):
    """Sequences: keys and values ``(B, N)`` (value 0: a query) and the answers ``(B, N / 2)``, from 0."""

    keys: Tensor
    values: Tensor
    answers: Tensor


def draw(batch: int, tokens: int, generator: torch.Generator, *, known: int | None = None) -> Sequences:
    """Return sequences of ``tokens / 2`` pairs, and as many queries; there are ``known`` keys, or ``tokens``."""
    pairs = tokens // 2
    keys = torch.rand(batch, known or tokens, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(1, VALUES + 1, (batch, pairs), generator=generator)
    asked = torch.randint(pairs, (batch, tokens - pairs), generator=generator)
    return Sequences(
        torch.cat([keys, keys.gather(1, asked)], 1),
        torch.cat([values, torch.zeros_like(asked)], 1),
        values.gather(1, asked) - 1,
    )


class Block(nn.Module):
    """Norm and attention, norm and MLP, each added to its input."""

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = ConvNNAttention(WIDTH, num_heads=1, k=k, aggregation="sum")
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, N, C)``."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class Recall(nn.Module):
    """Two blocks, and the values that the second half of the sequence asks for."""

    def __init__(self, tokens: int, k: int | None) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(tokens, WIDTH), nn.Embedding(VALUES + 1, WIDTH)
        for embedding in (self.key, self.value):
            nn.init.normal_(embedding.weight, std=0.02)
        self.block1, self.block2 = Block(k), Block(k)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VALUES)

    def forward(self, keys: Tensor, values: Tensor) -> Tensor:
        """Return the logits of the queries ``(B, N / 2, values)``."""
        x = self.block2(self.block1(self.key(keys) + self.value(values)))
        logits: Tensor = self.head(self.norm(x[:, keys.shape[1] // 2 :]))
        return logits


class Trainer:
    """A model with its optimiser and its sequences; a call is one step."""

    def __init__(self, tokens: int, k: int | None, *, seed: int = 0, lr: float = LR, grow: bool = False) -> None:
        torch.manual_seed(seed)
        self.model, self.tokens, self.lr, self.grow, self.taken = Recall(tokens, k), tokens, lr, grow, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.01)

    def length(self) -> int:
        """Return the length of the next step's sequences."""
        doublings = max(0, self.taken - SHORT_STEPS) // DOUBLING_STEPS + (self.taken >= SHORT_STEPS)
        return min(self.tokens, SHORTEST * 2**doublings) if self.grow else self.tokens

    def draw(self, tokens: int, generator: torch.Generator) -> Sequences:
        """Return the sequences of a step."""
        return draw(max(1, STEP_TOKENS // tokens), tokens, generator, known=self.tokens)

    def __call__(self, tokens: int | None = None) -> None:
        """Take one step, of sequences of ``tokens`` if given; the learning rate rises over the first 100."""
        sequences = self.draw(tokens or self.length(), self.generator)
        self.taken += 1
        self.optimizer.param_groups[0]["lr"] = self.lr * min(1.0, self.taken / 100)
        loss, _ = self.judge(sequences)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def judge(self, sequences: Sequences) -> tuple[Tensor, float]:
        """Return the loss, and the share of right answers."""
        logits = self.model(sequences.keys, sequences.values)
        right = (logits.argmax(-1) == sequences.answers).float().mean().item()
        return F.cross_entropy(logits.flatten(0, 1), sequences.answers.flatten()), right

    @torch.no_grad()
    def evaluate(self, seed: int) -> tuple[float, float]:
        """Return loss and accuracy on sequences that no step has seen."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(max(1, 2 * HELD_OUT // STEP_TOKENS)):
            loss, accuracy = self.judge(self.draw(self.tokens, generator))
            found.append((loss.item(), accuracy))
        losses, accuracies = zip(*found, strict=True)
        return statistics.fmean(losses), statistics.fmean(accuracies)


def train(tokens: int, k: int | None, *, steps: int, **options: Any) -> Record:
    """Train until the task is solved or the steps are used up; return what was reached."""
    trainer, reached, grown = Trainer(tokens, k, **options), None, 0
    start = time.perf_counter()
    while trainer.taken < steps and (reached is None or trainer.taken < max(reached, grown) + AFTER):
        grown = trainer.taken + 1 if trainer.length() < tokens else grown
        trainer()
        if reached is None and trainer.taken % EVERY == 0 and trainer.evaluate(HELD_OUT_SEED)[1] >= REACHED:
            reached = trainer.taken
    minutes = round((time.perf_counter() - start) / 60, 2)
    loss, accuracy = (round(value, 5) for value in trainer.evaluate(TEST_SEED))
    found = {"steps_to_99": reached, "steps": trainer.taken, "budget": steps}
    return {**found, "accuracy": accuracy, "loss": loss, "minutes": minutes}


def time_steps(tokens: int, ks: list[int | None]) -> list[Record]:
    """Return for every attention the median seconds of a step, and its ratio to the first one's in the same round."""
    settle_allocator()
    batch = max(1, STEP_TOKENS // tokens)
    trainers = [Trainer(tokens, k) for k in ks]
    seconds: list[list[float]] = [[] for _ in ks]
    for _ in range(ROUNDS + 1):
        for trainer, taken in zip(trainers, seconds, strict=True):
            start = time.perf_counter()
            trainer()
            taken.append(time.perf_counter() - start)
    rows = []
    for k, trainer, taken in zip(ks, trainers, seconds, strict=True):
        ratios = [one / first for one, first in zip(taken[1:], seconds[0][1:], strict=True)]  # the first round warms up
        choice = trainer.model.block1.attn.explain_choice(torch.zeros(batch, tokens, WIDTH))
        rows.append({
            "tokens": tokens, "k": k, "sequences": batch, "impl": choice.impl,
            "seconds": round(statistics.median(taken[1:]), 4), "ratio": round(statistics.median(ratios), 4),
            "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        })  # fmt: skip
    return rows


def extra_memory(tokens: int, k: int | None) -> float | None:
    """Return by how many MiB one step raises this process's resident memory; None where Linux does not say."""
    trainer = Trainer(tokens, k)
    trainer(min(SHORTEST, tokens) // 2)  # loads what is loaded once, and makes the optimiser's state
    before = forget_peak()
    trainer()
    return None if before is None else round(resident("VmHWM") - before, 1)


def fresh(job: str, tokens: int, ks: list[int | None]) -> Any:
    """Return what a fresh process finds."""
    given = ",".join("full" if k is None else str(k) for k in ks)
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", job, "--tokens", str(tokens), "--k", given]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def costs(tokens: int, ks: list[int | None]) -> list[Record]:
    """Return seconds and memory of a step with every attention; the ratios are to the first."""
    load = round(os.getloadavg()[0], 1)
    rows: list[Record] = fresh("time", tokens, ks)
    return [{**row, "extra_mib": fresh("memory", tokens, [row["k"]]), "load": load} for row in rows]


def read_ks(text: str) -> list[int | None]:
    """Read numbers of neighbours."""
    return [None if part == "full" else int(part) for part in text.split(",")]


def open_record(path: Path | None) -> Record:
    """Return the record to go on with, or a new one; a record of another machine or version is refused."""
    here: Record = machine()
    command = f"python benchmarks/{Path(__file__).name} {shlex.join(sys.argv[1:])}".strip()
    if path is None or not path.exists():
        return {"command": command, **here, "note": NOTE, "costs": [], "runs": []}
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    if others := [name for name in here if name != "date" and record[name] != here[name]]:
        raise SystemExit(f"{path}: made with another {', '.join(others)}; give another file")
    if command not in record["command"].split("; "):
        record["command"] += f"; {command}"
    return record


def write(record: Record, path: Path | None) -> None:
    """Write the record, whole at every moment."""
    if path is not None:
        beside = path.with_suffix(".partial")
        beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)


def missing(record: Record, arguments: argparse.Namespace, tokens: int) -> Iterator[Record]:
    """Yield the runs at one length that the record does not have."""
    for seed in range(arguments.seeds or SEEDS.get(tokens, 1)):
        for k in read_ks(arguments.k):
            run = {"tokens": tokens, "k": k, "seed": seed, "lr": arguments.lr, "grow": arguments.grow}
            if not any(run.items() <= other.items() for other in record["runs"]):
                yield run


def measure(arguments: argparse.Namespace) -> None:
    """Measure what the record does not have yet: first the costs of a length, then its runs."""
    record = open_record(arguments.json)
    ks = read_ks(arguments.k)
    for tokens in map(int, (arguments.tokens or LENGTHS[arguments.grow]).split(",")):
        if not set(ks) <= {row["k"] for row in record["costs"] if row["tokens"] == tokens}:
            kept = [row for row in record["costs"] if row["tokens"] != tokens or row["k"] not in ks]
            record["costs"] = kept + costs(tokens, ks)
            write(record, arguments.json)
        print(*(row for row in record["costs"] if row["tokens"] == tokens), sep="\n", flush=True)
        for run in missing(record, arguments, tokens):
            load = round(os.getloadavg()[0], 1)
            run |= {**train(**run, steps=arguments.steps or STEPS.get(tokens, 1000)), "load": load}
            record["runs"].append(run)
            write({**record, "date": machine()["date"]}, arguments.json)
            print(run, flush=True)


def main() -> None:
    """Read the options, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="the record to write, or to go on with")
    parser.add_argument("--tokens", help="lengths of the sequences (192,1024; with --grow 1024,4096)")
    parser.add_argument("--grow", action="store_true", help="begin the training with short sequences")
    parser.add_argument("--k", default="full,4,8,16,32", help="neighbours (full,4,8,16,32); ratios are to the first")
    parser.add_argument("--seeds", type=int, help="runs of each (3 at 192 tokens, else 1)")
    parser.add_argument("--lr", type=float, default=LR, help=f"learning rate ({LR})")
    parser.add_argument("--steps", type=int, help="most steps of a run (1,000; at 1,024 tokens 2,000)")
    parser.add_argument("--worker", choices=["time", "memory"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker == "time":
        print(json.dumps(time_steps(int(arguments.tokens), read_ks(arguments.k))))
    elif arguments.worker == "memory":
        print(json.dumps(extra_memory(int(arguments.tokens), read_ks(arguments.k)[0])))
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
