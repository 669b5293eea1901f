"""A study on Ray itself: killed, resumed, and as if it had not been. Slow: Ray takes half a minute to start."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convnn import ConvNNError
from convnn._utils.cores import available_cores
from convnn.train.study.pool import Room, run_pool

ROOT = Path(__file__).parents[3]
STUDY = """
settings: {data: %s, batch_size: 4, image_size: 8, channels: 1, model: small_cnn, augment: none}
variants: {conv: {layer: conv, epochs: 1}, hybrid: {layer: hybrid, k: 4, epochs: 60}}
seeds: [0]
"""


def sweep(tmp_path, name):
    command = [sys.executable, "-m", "convnn.cli", "sweep", "study.yaml", "--out", name, "--at-once", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def results(folder):
    read = {}
    for path in sorted(Path(folder).rglob("result.json")):
        read[str(path.parent.relative_to(folder))] = json.loads(path.read_text())
    return read


def wait_for(condition, seconds=900):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def processes_of(folder):
    """Return the processes that train in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if "convnn.train.study.trial" in path.read_text() and any(
                str(folder) in os.readlink(link) for link in (path.parent / "fd").iterdir() if link.is_symlink()
            ):
                found.append(path.parent.name)
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks for processes in /proc")
def test_a_study_that_is_killed_goes_on_where_it_was(images, tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY % "images")  # a path from where the study is started
    (tmp_path / "images").symlink_to(images)
    out = tmp_path / "killed"
    process = sweep(tmp_path, "killed")

    def one_done():
        states = [(result["status"], len(result["epochs"])) for result in results(out).values()]
        return any(status == "finished" for status, _ in states) and any(
            0 < n < 40 and status != "finished" for status, n in states
        )

    wait_for(lambda: one_done() or process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not processes_of(out), seconds=90)  # no run outlives its study
    before = {name: result for name, result in results(out).items() if result["status"] == "finished"}
    times = {name: (out / name / "result.json").stat().st_mtime_ns for name in before}
    again = sweep(tmp_path, "killed")
    said, _ = again.communicate(timeout=900)
    assert again.returncode == 0, said
    assert f"2 runs in {out}, {len(before)} finished" in said
    assert {name: (out / name / "result.json").stat().st_mtime_ns for name in before} == times
    assert (out / "comparison.html").is_file()
    whole = sweep(tmp_path, "whole")
    assert whole.wait(timeout=900) == 0
    for name, result in results(tmp_path / "whole").items():
        other = results(out)[name]
        assert [e["train_loss"] for e in result["epochs"]] == [e["train_loss"] for e in other["epochs"]]
        assert result["test"] == other["test"]


@pytest.mark.slow
def test_what_a_machine_does_not_have_is_named_before_ray_starts():
    with pytest.raises(ConvNNError, match=f"^cpus: expected at most {available_cores()}, the cores of this machine"):
        run_pool([{}], Room(cpus=available_cores() + 1), lambda *_: None)
