"""Runs of a second: a tiny network on random images, in loaders that know their position, in forked processes."""

import functools
import multiprocessing
import os
import signal
import socket
import time
import traceback

import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from convnn import ConvNN2d, Random
from convnn.errors import RunError, TerminatedError
from convnn.train import TrainSettings
from convnn.train import run as run_module
from convnn.train.loading import number_layers
from convnn.train.randomness import mixed_seed, seed_step
from convnn.train.run import train

CLASSES = 6


class PlacedBatches:
    """Batches of an epoch, from the position that a checkpoint gave; each process has its rows of every batch."""

    def __init__(self, images, labels, size, *, order=None, share=(0, 1)):
        order = torch.arange(len(labels)) if order is None else order
        self.batches = [chosen[share[0] :: share[1]] for chosen in order.split(size)]
        self.images, self.labels, self.position = images, labels, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for chosen in self.batches[self.position :]:
            self.position += 1
            yield self.images[chosen], self.labels[chosen]
        self.position = 0

    def state_dict(self):
        return {"batches": self.position}

    def load_state_dict(self, state):
        self.position = state["batches"] % len(self)


class RandomData(LightningDataModule):
    """Random images whose class shows in their mean; augmented by noise when a batch is ready to be trained on."""

    folder = None

    def __init__(self, settings, *, takes, say=None, sizes=(41, 12, 12)):
        super().__init__()
        self.settings, self.takes, self.skipped = settings, takes, {}
        self.classes = [str(number) for number in range(CLASSES)]
        generator = torch.Generator().manual_seed(0)
        self.splits = {}
        for split, count in zip(("train", "val", "test"), sizes, strict=True):
            labels = torch.arange(count) % CLASSES
            images = torch.randn(count, settings.channels, takes.size, takes.size, generator=generator)
            self.splits[split] = images + labels.view(-1, 1, 1, 1) / 2, labels

    def counts(self):
        return {split: len(labels) for split, (_, labels) in self.splits.items()}

    def record(self):
        return {"classes": self.classes, "splits": {split: {"images": n} for split, n in self.counts().items()}}

    def _batches(self, split, order=None):
        share = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        return PlacedBatches(*self.splits[split], self.settings.batch_size, order=order, share=share)

    def train_dataloader(self):
        epoch = 0 if self.trainer is None else self.trainer.fit_loop.epoch_progress.current.processed
        generator = torch.Generator().manual_seed(mixed_seed(self.settings.seed, epoch))
        return self._batches("train", torch.randperm(len(self.splits["train"][1]), generator=generator))

    def val_dataloader(self):
        return self._batches("val")

    def test_dataloader(self):
        return self._batches("test")

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if not self.trainer.training or self.settings.augment == "none":
            return batch
        seed_step(self.settings.seed, self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1)
        return batch[0] + 0.1 * torch.randn_like(batch[0]), batch[1]


TINY = {
    "data": "torch/none", "layer": "hybrid", "candidates": "random:12", "k": 3, "image_size": 8, "channels": 1,
    "epochs": 3, "batch_size": 8, "lr": 3e-3, "accelerator": "cpu", "progress": False,
}  # fmt: skip
"""What makes a run tiny; its hybrid layers draw candidates at random."""
EVERYTHING = {**TINY, "mixup": 0.4, "cutmix": 0.4, "ema": 0.9, "clip_grad": 1.0, "label_smoothing": 0.1}
"""A run with everything that draws or that has a state of its own."""


def tiny_network(settings, *, classes):
    """What draws, normalises and learns, in some weights; with layer conv nothing draws or depends on other images."""
    dropout = 0.0 if settings.layer == "conv" else 0.1
    norm = nn.LayerNorm((4, 8, 8)) if settings.layer == "conv" else nn.BatchNorm2d(4)
    layer = ConvNN2d(1, 4, 3, candidates=Random(12)) if settings.layer == "hybrid" else nn.Conv2d(1, 4, 3, padding=1)
    network = nn.Sequential(layer, norm, nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(256, classes))
    return number_layers(network)


def use_tiny_runs(monkeypatch):
    monkeypatch.setattr(run_module, "ImageData", RandomData)
    monkeypatch.setattr(run_module, "build_model", tiny_network)
    monkeypatch.setattr(run_module, "count_flops", lambda model, image: 1)


def run(out, **options):
    return train(TrainSettings(out=str(out), **options))


def resume(out, **options):
    return train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False, **options))


def in_forks(work, count):
    """Do ``work()`` in ``count`` forked processes, which know of each other as torchrun tells it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(rank):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        work()

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_child, args=(functools.partial(member, rank),)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def _child(work):
    torch.set_num_threads(1)
    code = 0
    try:
        work()
    except TerminatedError:
        code = 143
    except KeyboardInterrupt:
        code = 130
    except RunError:
        code = 1
    except Exception:  # noqa: BLE001 - whatever it is, the test prints it and fails
        traceback.print_exc()
        code = 3
    os._exit(code)


def in_fork(work, *, kill_after=None):
    """Do ``work()`` in a forked process, which has everything imported; return its exit code, negative for a signal."""

    process = multiprocessing.get_context("fork").Process(target=_child, args=(work,))
    process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join(120)
    return process.exitcode


def kill_self(number=signal.SIGKILL):
    os.kill(os.getpid(), number)


def weights(out, name="last.ckpt"):
    return torch.load(out / name, weights_only=True)
