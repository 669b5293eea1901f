"""Sweeps without Ray: a pool that trains in turn, and runs in processes of their own."""

import json
import os
import subprocess
import sys
import time

import pytest

from convnn import ConvNNError
from convnn.errors import RunError
from convnn.train import TrainSettings
from convnn.train.run import train
from convnn.train.study import trial
from convnn.train.study.settings import SweepSettings
from convnn.train.study.sweep import plan_of, sweep
from convnn.train.study.trial import LOG, run_process

from ...command_line import run

STUDY = """
study: {title: Tiny}
settings: {data: %s, epochs: 1, batch_size: 16, image_size: 8, channels: 1, model: small_cnn, augment: none}
variants: {conv: {layer: conv}, hybrid: {layer: hybrid, k: 4, seeds: [0]}}
seeds: [0, 1]
baseline: conv
"""


class Watch:
    def __init__(self):
        self.epochs, self.ends = [], []

    def epoch(self, folder, entry):
        self.epochs.append((folder, entry["epoch"]))

    def ended(self, folder, result, error):
        self.ends.append((folder, error))


def in_turn(runs, room, report):
    """A pool that trains here, one run after another; those whose learning rate is 99 fail."""
    for position, values in enumerate(runs):
        if values["lr"] == 99:
            report(position, {"error": "it failed"})
            continue
        for entry in train(TrainSettings(**values))["epochs"]:
            report(position, {"entry": entry})
        report(position, {"error": ""})


@pytest.fixture
def study(images, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY % images)
    return SweepSettings(study=str(path), out=str(tmp_path / "out"))


def test_a_study_runs_what_is_left_and_compares(study, tmp_path):
    watch = Watch()
    results = sweep(study, watch=watch, pool=in_turn)
    folders = ["conv/seed-0", "conv/seed-1", "hybrid/seed-0"]
    assert watch.epochs == [(folder, 1) for folder in folders]
    assert watch.ends == [(folder, "") for folder in folders]
    assert [(variant["name"], variant["n"]) for variant in results["variants"]] == [("conv", 2), ("hybrid", 1)]
    assert (tmp_path / "out" / "study.yaml").read_text() == (tmp_path / "tiny.yaml").read_text()
    names = {"comparison.json", "comparison.png", "comparison.svg", "comparison.html"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    again = Watch()
    (tmp_path / "out" / "conv" / "seed-1" / "result.json").write_text('{"status": "running"}')
    sweep(
        study, watch=again, pool=lambda runs, room, report: in_turn([{**r, "resume": True} for r in runs], room, report)
    )
    assert again.ends == [("conv/seed-1", "")]


def test_settings_and_results_are_all_that_a_finished_run_needs(study, tmp_path):
    """What tools/keep_runs.py keeps: another machine goes on from there."""
    whole = sweep(study, watch=Watch(), pool=in_turn)
    for path in (tmp_path / "out").glob("*/seed-*/*"):
        if path.name not in ("settings.yaml", "result.json"):
            path.unlink()
    again = sweep(study, watch=Watch(), pool=lambda *_: pytest.fail("a finished run is run again"))
    assert [variant["values"] for variant in again["variants"]] == [variant["values"] for variant in whole["variants"]]


def test_a_folder_with_other_settings_is_refused(study, tmp_path):
    sweep(study, watch=Watch(), pool=in_turn)
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text().replace("k: 4", "k: 5"))
    with pytest.raises(ConvNNError, match=r"^out: k: expected 4, as the run in .*hybrid/seed-0 has it, got 5; choose"):
        plan_of(study)


def test_a_run_that_fails_stops_no_other(study, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text().replace("layer: hybrid,", "layer: hybrid, lr: 99.0,"))
    watch = Watch()
    with pytest.raises(RunError, match=r"^1 of 3 runs have not finished; hybrid/seed-0: it failed$"):
        sweep(study, watch=watch, pool=in_turn)
    assert watch.ends[-1] == ("hybrid/seed-0", "it failed")
    assert (tmp_path / "out" / "comparison.html").is_file()


def test_a_study_of_which_nothing_finishes_says_why(study, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text().replace("epochs: 1", "epochs: 1, lr: 99.0"))
    with pytest.raises(RunError, match=r"^no run of tiny has finished; conv/seed-0: it failed \(and 2 more\)$"):
        sweep(study, watch=Watch(), pool=in_turn)


def test_a_dry_run_lists_and_runs_nothing(study, tmp_path, capsys):
    status, out, _ = run(capsys, "sweep", study.study, "--out", study.out, "--dry-run")
    assert status == 0
    assert out.splitlines()[:3] == ["conv/seed-0: to do", "conv/seed-1: to do", "hybrid/seed-0: to do"]
    assert "3 runs, 3 to do" in out
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------- processes of their own
def values(images, out, **more):
    given = {"data": str(images), "epochs": 2, "batch_size": 16, "image_size": 8, "channels": 1, "augment": "none"}
    return {**given, "out": str(out), "progress": False, "accelerator": "cpu", **more}


def test_a_process_trains_and_its_epochs_are_reported(images, tmp_path):
    seen = []
    error = run_process(values(images, tmp_path / "run"), threads=1, report=seen.append)
    assert error == ""
    assert [entry["epoch"] for entry in seen] == [1, 2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["provenance"]["threads"] == "1"


def test_relative_paths_are_taken_from_the_folder_of_the_study(images, tmp_path):
    (tmp_path / "images").symlink_to(images)
    (tmp_path / "timm.py").write_text("raise RuntimeError('imported from the folder of the study')")
    settings = values("images", tmp_path / "run", max_steps=1)
    assert run_process(settings, threads=1, report=print, folder=str(tmp_path)) == ""
    assert json.loads((tmp_path / "run" / "result.json").read_text())["settings"]["data"] == "images"


def test_a_process_that_is_wrong_says_so_in_one_line(tmp_path):
    error = run_process(values(tmp_path / "nowhere", tmp_path / "run"), threads=1, report=print)
    assert error.startswith("data: expected a folder that exists, got ")
    assert (tmp_path / "run" / LOG).read_text().strip() == error


def test_a_process_that_is_killed_is_started_again(tmp_path, monkeypatch):
    """The first two are killed; the third ends."""
    code = (
        "import os, sys, pathlib; sys.stdin.readline(); path = pathlib.Path(sys.argv[1])\n"
        "count = len(path.read_text()) if path.exists() else 0; path.write_text('x' * (count + 1))\n"
        "os.kill(os.getpid(), 9) if count < int(sys.argv[2]) else print('done')"
    )
    counter = tmp_path / "count"
    real = subprocess.Popen
    kills = {"n": 2}

    def popen(command, **options):
        return real([sys.executable, "-c", code, str(counter), str(kills["n"])], **options)

    monkeypatch.setattr(trial.subprocess, "Popen", popen)
    assert run_process({"out": str(tmp_path / "run")}, threads=1, report=print) == ""
    assert counter.read_text() == "xxx"
    kills["n"] = 9
    assert (
        run_process({"out": str(tmp_path / "run")}, threads=1, report=print)
        == "its process was killed by signal 9, 3 times"
    )


def start(images, out, **settings):
    """Start a run in a process of its own, as a study does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "convnn.train.study.trial"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
    )  # fmt: skip
    out.mkdir()
    process.stdin.write(json.dumps(values(images, out, **settings)) + "\n")
    process.stdin.flush()
    return process


def test_a_process_has_workers_while_its_study_lives(images, tmp_path):
    """A worker closes the standard input that it is forked with; it must not wait for who watches that input."""
    process = start(images, tmp_path / "run", epochs=1, workers=1, resident="no")
    try:
        assert process.wait(timeout=100) == 0
    finally:
        process.kill()
        process.stdin.close()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


def test_a_process_ends_with_the_study_that_started_it(images, tmp_path):
    out = tmp_path / "run"
    process = start(images, out, epochs=100_000)
    until = time.monotonic() + 120
    while not (out / "result.json").exists() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.stdin.close()  # as the system does when the study is killed
    assert process.wait(timeout=60) != 0
    assert json.loads((out / "result.json").read_text())["status"] != "finished"
