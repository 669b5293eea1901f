"""Runs that are killed, stopped, starved of space or given damaged checkpoints end as the undisturbed one."""

import json
import os
import random
import signal
import time

import pytest
import torch

from convnn import ConvNNError
from convnn.errors import RunError, TerminatedError
from convnn.train import checkpoint as checkpoint_module
from convnn.train import run as run_module
from convnn.train.checkpoint import digest_of
from convnn.train.module import Classifier
from convnn.train.record import Recorder

from .small_runs import EVERYTHING, in_fork, kill_self, resume, run, use_tiny_runs, weights
from .test_run import same, timeless

OFTEN = {**EVERYTHING, "checkpoint_minutes": 1e-9}
"""A checkpoint after every step."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder and the result of a run that nothing happened to, and its seconds."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_runs(patch)
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        started = time.perf_counter()
        assert in_fork(lambda: run(out, **OFTEN)) == 0
        seconds = time.perf_counter() - started
    return out, json.loads((out / "result.json").read_text()), seconds


def assert_same_end(undisturbed, out):
    """Weights, averages, optimiser, schedule, metrics and test are those of the undisturbed run, bit for bit."""
    whole, expected, _ = undisturbed
    first, second = weights(whole), weights(out)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "train_metrics"):
        assert same(first[part], second[part]), part
    assert same(weights(whole, "best.ckpt")["state_dict"], weights(out, "best.ckpt")["state_dict"])
    result = json.loads((out / "result.json").read_text())
    assert timeless(result["epochs"]) == timeless(expected["epochs"])
    assert result["test"] == expected["test"]
    assert result["status"] == "finished"


def when(monkeypatch, owner, name, count, act):
    """Have the ``count``-th call of a method begin with ``act()``."""
    original, calls = getattr(owner, name), [0]

    def counted(*arguments, **options):
        calls[0] += 1
        if calls[0] == count:
            act()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


MOMENTS = {
    "training": (Classifier, "training_step", 9),
    "validation": (Classifier, "validation_step", 3),
    "write": (os, "fsync", 14),
    "rename": (os, "replace", 17),
    "test": (Classifier, "test_step", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_the_undisturbed_one(undisturbed, tiny, tmp_path, monkeypatch, moment):
    out = tmp_path / "run"
    owner, name, count = MOMENTS[moment]
    with monkeypatch.context() as patch:
        when(patch, owner, name, count, kill_self)
        assert in_fork(lambda: run(out, **OFTEN)) == -signal.SIGKILL
    assert in_fork(lambda: resume(out)) == 0
    assert_same_end(undisturbed, out)


READ = {
    "memory": {"augment": "light", "cutout": 2},
    "workers": {"augment": "strong", "workers": 2},
}


@pytest.mark.parametrize("read", READ)
def test_a_killed_run_on_images_of_files_ends_as_the_undisturbed_one(images, tmp_path, monkeypatch, read):
    options = {**OFTEN, "data": str(images), **READ[read], "epochs": 2}
    monkeypatch.setattr(run_module, "count_flops", lambda model, image: 1)
    assert in_fork(lambda: run(tmp_path / "whole", **options)) == 0
    with monkeypatch.context() as patch:
        when(patch, Classifier, "training_step", 7, kill_self)
        assert in_fork(lambda: run(tmp_path / "run", **options)) == -signal.SIGKILL
    assert in_fork(lambda: resume(tmp_path / "run")) == 0
    expected = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert_same_end((tmp_path / "whole", expected, 0.0), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_a_run_killed_at_random_moments_ends_as_the_undisturbed_one(undisturbed, tiny, tmp_path, seed):
    out, moments = tmp_path / "run", random.Random(seed)
    kills = 0
    while kills < 2:
        start = (lambda: resume(out)) if (out / "settings.yaml").exists() else (lambda: run(out, **OFTEN))
        code = in_fork(start, kill_after=moments.uniform(0.1, undisturbed[2]))
        assert code in (-signal.SIGKILL, 0)
        if code == 0:
            break
        kills += 1
    if code:
        assert in_fork((lambda: resume(out)) if (out / "settings.yaml").exists() else (lambda: run(out, **OFTEN))) == 0
    assert_same_end(undisturbed, out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["training", "validation"])
def test_a_signal_finishes_the_step_and_saves_it(undisturbed, tiny, tmp_path, monkeypatch, number, code, moment):
    out = tmp_path / "run"
    owner, name, count = MOMENTS[moment]
    with monkeypatch.context() as patch:
        when(patch, owner, name, count, lambda: kill_self(number))
        assert in_fork(lambda: run(out, **EVERYTHING)) == code  # checkpoints at the ends of epochs, and this one
    saved = weights(out)
    assert saved["global_step"] == (9 if moment == "training" else 12)
    assert json.loads((out / "result.json").read_text())["status"] == "interrupted"
    assert in_fork(lambda: resume(out)) == 0
    assert_same_end(undisturbed, out)


def test_a_signal_while_gradients_add_up_waits_for_the_update(tiny, tmp_path, monkeypatch):
    out, whole = tmp_path / "run", tmp_path / "whole"
    options = {**EVERYTHING, "accumulate": 4}
    run(whole, **options)
    with monkeypatch.context() as patch:
        when(patch, Classifier, "training_step", 2, lambda: kill_self(signal.SIGTERM))
        with pytest.raises(TerminatedError):
            run(out, **options)
    assert weights(out)["global_step"] == 1
    assert weights(out)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 4
    resume(out)
    assert same(weights(whole)["state_dict"], weights(out)["state_dict"])


def no_space(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(undisturbed, tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        when(patch, os, "fsync", 12, no_space)
        with pytest.raises(RunError, match=r"^No space left on device \(.*\); the last checkpoint is intact; make"):
            run(out, **OFTEN)
    assert checkpoint_module.intact(out / "last.ckpt")
    assert not list(out.glob("*.partial")) + list(out.glob("*.new"))
    resume(out)
    assert_same_end(undisturbed, out)


def test_a_limit_of_the_system_is_one_line_too(tiny, tmp_path):
    import resource

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        run(tmp_path / "run", **OFTEN)

    assert in_fork(limited) == 1
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(undisturbed, tiny, tmp_path, monkeypatch, damage):
    from convnn.train import TrainSettings
    from convnn.train.run import train

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        when(patch, Classifier, "training_step", 9, lambda: kill_self(signal.SIGTERM))
        with pytest.raises(TerminatedError):
            run(out, **OFTEN)
    content = bytearray((out / "last.ckpt").read_bytes())
    if damage == "altered":
        content[len(content) // 2] ^= 1
    (out / "last.ckpt").write_bytes(content if damage == "altered" else content[: len(content) // 2])
    if damage == "missing":
        (out / "last.ckpt").unlink()
    said = []
    train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False), say=said.append)
    assert sum("going on from previous.ckpt" in line for line in said) == 1
    assert_same_end(undisturbed, out)


def test_two_damaged_checkpoints_are_refused(tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        when(patch, Classifier, "training_step", 9, lambda: kill_self(signal.SIGTERM))
        with pytest.raises(TerminatedError):
            run(out, **OFTEN)
    for name in ("last.ckpt", "previous.ckpt"):
        (out / name).write_bytes(b"nothing")
    with pytest.raises(ConvNNError, match=r"^out: expected a run with an intact checkpoint, got last.ckpt and prev"):
        resume(out)


def test_digests_are_of_what_is_written(undisturbed):
    out = undisturbed[0]
    for name in ("last.ckpt", "best.ckpt"):
        first = (out / f"{name}.sha256").read_text().splitlines()[0]
        assert first == f"{digest_of(out / name)}  {name}"
    assert digest_of(out / "previous.ckpt") in (out / "last.ckpt.sha256").read_text()


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(tiny, tmp_path, monkeypatch):
    original = Classifier._logits

    def poisoned(self, images):
        bad = self.training and self.trainer.global_step == 8
        return original(self, images) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(Classifier, "_logits", poisoned)
    from convnn.errors import DivergedError

    with pytest.raises(DivergedError, match="the training loss is nan at epoch 2, step 3"):
        run(tmp_path / "run", **OFTEN)
    saved = weights(tmp_path / "run")
    assert saved["global_step"] == 8
    assert all(bool(weight.isfinite().all()) for weight in saved["state_dict"].values())


def test_a_file_that_vanishes_is_one_line(tiny, tmp_path, monkeypatch):
    def gone():
        raise FileNotFoundError(2, "No such file or directory", "images/7.png")

    when(monkeypatch, torch, "randn_like", 9, gone)
    with pytest.raises(RunError, match=r"images/7\.png'; mend it, then go on with: convnn train --out .* --resume$"):
        run(tmp_path / "run", **OFTEN)
    assert checkpoint_module.intact(tmp_path / "run" / "last.ckpt")


def test_without_places_there_are_checkpoints_at_the_ends_of_epochs_only(tiny, tmp_path, monkeypatch):
    from .small_runs import PlacedBatches

    monkeypatch.delattr(PlacedBatches, "state_dict")
    monkeypatch.setattr(Recorder, "on_train_epoch_end", lambda *_: None)
    with pytest.raises(RunError, match=r"best\.ckpt"):
        run(tmp_path / "run", **{**OFTEN, "epochs": 1})
    assert not (tmp_path / "run" / "last.ckpt").exists()
