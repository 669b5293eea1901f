"""What a run writes and prints, several seeds in one call, and what ends a command."""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from convnn import ConvNNError, cli
from convnn.errors import MissingExtraError, RunError
from convnn.train import TrainSettings
from convnn.train.checkpoint import read_checkpoint
from convnn.train.module import Classifier
from convnn.train.report import run_train
from convnn.train.run import train

from .small_runs import TINY, kill_self, run, weights
from .test_run import same, timeless

PLAIN = {**TINY, "epochs": 2}


def press(monkeypatch, number, *, step=4):
    original = Classifier.training_step

    def pressed(self, batch, batch_index):
        if self.trainer.global_step == step:
            kill_self(number)
        return original(self, batch, batch_index)

    monkeypatch.setattr(Classifier, "training_step", pressed)


def test_seeds_are_runs_of_their_own_and_summed_up(tiny, tmp_path):
    result = run(tmp_path / "all", **PLAIN, seeds="0,3")
    for seed in (0, 3):
        alone = run(tmp_path / str(seed), **PLAIN, seed=seed)
        assert result["seeds"][str(seed)]["test"] == alone["test"]
        assert same(
            weights(tmp_path / "all" / f"seed-{seed}")["state_dict"], weights(tmp_path / str(seed))["state_dict"]
        )
    accuracies = [run["test"]["test_accuracy"] for run in result["seeds"].values()]
    mean = sum(accuracies) / 2
    assert result["test"]["test_accuracy"] == {
        "mean": pytest.approx(mean), "std": pytest.approx(abs(accuracies[0] - mean) * 2**0.5), "n": 2,
    }  # fmt: skip
    assert result["status"] == "finished"
    assert json.loads((tmp_path / "all" / "result.json").read_text()) == result


def test_several_seeds_go_on_where_they_were(tiny, tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", **PLAIN, seeds="0,1")
    out, runs = tmp_path / "run", []
    original = Classifier.training_step

    def pressed(self, batch, batch_index):
        if self.seed == 1 and self.trainer.global_step == 4:
            raise KeyboardInterrupt
        return original(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            run(out, **PLAIN, seeds="0,1")
    assert json.loads((out / "result.json").read_text())["status"] == "running"
    with pytest.raises(ConvNNError, match=r"^out: expected a folder without a run in it"):
        run(out, **PLAIN, seeds="0,1")
    monkeypatch.setattr(Classifier, "on_fit_start", lambda self: runs.append(self.seed), raising=False)
    resumed = train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False))
    assert resumed["test"] == whole["test"]
    assert runs == [1]


def test_auto_resume_starts_and_goes_on_with_one_command(tiny, tmp_path, monkeypatch):
    whole, out = run(tmp_path / "whole", **PLAIN), tmp_path / "run"
    with monkeypatch.context() as patch:
        press(patch, signal.SIGTERM)
        with pytest.raises(RunError):
            run(out, **PLAIN, auto_resume=True)
    result = run(out, **PLAIN, auto_resume=True)
    assert timeless(result["epochs"]) == timeless(whole["epochs"])
    assert "resume" not in yaml.safe_load((out / "settings.yaml").read_text())


def test_lines_for_programs(tiny, tmp_path, capsys):
    run_train(TrainSettings(out=str(tmp_path / "run"), **PLAIN, json_lines=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines if line["event"] != "note"] == ["start", "epoch", "epoch", "end"]
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [(line["epoch"], line["epochs"]) for line in epochs] == [(1, 2), (2, 2)]
    assert {"train_loss", "val_accuracy", "lr", "images_per_second"} <= epochs[0].keys()
    assert lines[-1]["status"] == "finished"
    assert "test_accuracy" in lines[-1]["test"]


def test_lines_for_people_where_there_is_no_terminal(tiny, tmp_path, capsys):
    run_train(TrainSettings(out=str(tmp_path / "run"), **{**PLAIN, "progress": True}, seeds="0,1"))
    shown = capsys.readouterr().out
    assert shown.count("epoch 2/2   train ") == 2
    assert "(n = 2 seeds)" in shown


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_is_one_line_and_a_status(tiny, tmp_path, monkeypatch, capsys, number, status, word):
    press(monkeypatch, number)
    out = tmp_path / "run"
    options = [f"--{name.replace('_', '-')}={str(value).lower()}" for name, value in PLAIN.items()]
    assert cli.main(["train", *options, "--out", str(out)]) == status
    error = capsys.readouterr().err
    assert error == f"convnn train: {word}; go on with: convnn train --out {out} --resume\n"
    assert weights(out)["global_step"] == 5
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_checkpoint_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("it was executed",))

    import torch

    torch.save({"state_dict": Evil()}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_where_the_code_came_from(tiny, tmp_path):
    origin = run(tmp_path / "run", **{**PLAIN, "epochs": 1})["provenance"]
    assert {"torch", "lightning", "timm", "machine", "python", "command", "date"} <= origin.keys()
    assert all(len(part) in (40, 5) for part in origin.get("commit", "").split("-") if part)


def test_tensorboard_is_named_where_it_is_missing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"^tensorboard is not installed, .*\[train\]"):
        run(tmp_path / "run", **PLAIN, tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_tensorboard_s_files(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    run(tmp_path / "run", **PLAIN, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_accuracy")] == [5, 11]


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(images, tmp_path):
    """The whole program, in processes that the system started."""
    out = tmp_path / "run"
    call = [sys.executable, "-m", "convnn.cli", "train"]
    options = ["--data", str(images), "--image-size", "8", "--channels", "1", "--epochs", "2", "--accelerator", "cpu"]
    whole = subprocess.run([*call, *options, "--out", str(tmp_path / "whole")], capture_output=True, check=True)
    assert b"epoch 2/2" in whole.stdout
    process = subprocess.Popen([*call, *options, "--out", str(out)], stdout=subprocess.PIPE, text=True)
    next(line for line in process.stdout if line.startswith("epoch 1/2"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (143, 0)
    subprocess.run([*call, "--out", str(out), "--resume"], capture_output=True, check=True)
    assert same(weights(out)["state_dict"], weights(tmp_path / "whole")["state_dict"])


@pytest.mark.slow
def test_a_command_starts_its_second_process_itself(images, tmp_path):
    call = [sys.executable, "-m", "convnn.cli", "train", "--devices", "2", "--strategy", "ddp"]
    options = ["--data", str(images), "--image-size", "8", "--channels", "1", "--epochs", "2", "--accelerator", "cpu"]
    done = subprocess.run(
        [*call, *options, "--out", str(tmp_path / "run")], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"
