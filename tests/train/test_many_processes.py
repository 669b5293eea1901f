"""Two processes compute what one does: losses, weights, random candidates, checkpoints."""

import json
import signal

import pytest
import torch

from convnn.train import TrainSettings
from convnn.train.module import Classifier
from convnn.train.run import train

from .small_runs import TINY, in_fork, in_forks, kill_self, resume, run, weights
from .test_run import same

TWO = {"devices": "2", "strategy": "ddp"}
PLAIN = {**TINY, "layer": "conv", "augment": "none", "epochs": 2, "ema": 0.5, "clip_grad": 1.0}
"""Without anything that draws or that depends on the other images of a batch."""


def history(out):
    return json.loads((out / "result.json").read_text())["epochs"]


def test_two_processes_have_the_losses_of_one(tiny, tmp_path):
    run(tmp_path / "one", **PLAIN)
    assert in_forks(lambda: run(tmp_path / "two", **PLAIN, **TWO), 2) == [0, 0]
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        for name in ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_top5", "lr", "step"):
            assert two[name] == pytest.approx(one[name], abs=1e-5), name
    one, two = (weights(tmp_path / name)["state_dict"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "two" / "result.json").read_text())["status"] == "finished"


def test_random_candidates_are_the_same_in_every_process(tiny, tmp_path, monkeypatch):
    from convnn import Random

    original = Random.draw
    options = {**TINY, "epochs": 1, "augment": "none"}

    def written(self, count, device):
        drawn = original(self, count, device)
        import os

        with (tmp_path / f"drawn-{os.environ.get('RANK', 'alone')}").open("a") as file:
            file.write(f"{drawn.tolist()}\n")
        return drawn

    monkeypatch.setattr(Random, "draw", written)
    assert in_forks(lambda: run(tmp_path / "two", **options, **TWO), 2) == [0, 0]
    run(tmp_path / "one", **options)
    drawn = [(tmp_path / f"drawn-{name}").read_text().splitlines() for name in ("0", "1", "alone")]
    assert len(set(drawn[0])) > 3
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_signal_stops_both_processes_and_one_goes_on(tiny, tmp_path, monkeypatch):
    out, options = tmp_path / "run", {**PLAIN, "epochs": 4}
    run(tmp_path / "whole", **options)
    original = Classifier.training_step

    def pressed(self, batch, batch_index):
        if self.trainer.global_step == 7 and self.trainer.global_rank == 1:
            kill_self(signal.SIGTERM)
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", pressed)
        assert in_forks(lambda: run(out, **options, **TWO), 2) == [143, 143]
    assert weights(out)["global_step"] == 10
    assert resume(out)["status"] == "finished"
    for whole, resumed in zip(history(tmp_path / "whole"), history(out), strict=True):
        assert resumed["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-5)
        assert resumed["train_accuracy"] == pytest.approx(whole["train_accuracy"], abs=1e-5)


def test_one_process_goes_on_as_two(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(tmp_path / "whole", **PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "validation_step", lambda *_: kill_self(signal.SIGTERM))
        assert in_fork(lambda: run(out, **PLAIN)) == 143
    again = {"resume": True, "accelerator": "cpu", "progress": False, **TWO}
    assert in_forks(lambda: train(TrainSettings(out=str(out), **again)), 2) == [0, 0]
    for whole, resumed in zip(history(tmp_path / "whole"), history(out), strict=True):
        assert resumed["train_loss"] == pytest.approx(whole["train_loss"], abs=1e-5)
        assert resumed["val_loss"] == pytest.approx(whole["val_loss"], abs=1e-5)


def test_two_runs_of_two_processes_are_the_same(tiny, tmp_path):
    for name in ("first", "second"):
        assert in_forks(lambda name=name: run(tmp_path / name, **{**TINY, "epochs": 1}, **TWO), 2) == [0, 0]
    assert same(weights(tmp_path / "first")["state_dict"], weights(tmp_path / "second")["state_dict"])
