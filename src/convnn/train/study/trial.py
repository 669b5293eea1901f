"""One run of a study in a process of its own: ``python -m convnn.train.study.trial``, its settings on standard input.

The process ends when standard input does: so a run never outlives the study that started it, not even after a
``kill -9``. A run that was started before goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ..._utils.locks import locked
from ...errors import ConvNNError, MissingExtraError, RunError

LOG = "train.log"
"""What a run prints, in its folder."""
GRACE = 60.0
"""Seconds that a run has to save where it is, once its study is gone."""
TRIES = 3
"""How often a run is started whose process is killed, by the system or by hand."""
POLL = 0.5


def run_process(
    settings: dict[str, Any], *, threads: int, report: Callable[[dict[str, Any]], None], folder: str | None = None
) -> str:
    """Train in a new process; return an empty text, or why there is no result.

    Relative paths in the settings are taken from ``folder``, or from where this process is.
    Every finished epoch is reported, as ``result.json`` has it. What the process prints is in ``train.log``. A process
    that was killed is started again, to go on from its last checkpoint, up to ``TRIES`` times in all.
    """
    out = Path(settings["out"])
    out.mkdir(parents=True, exist_ok=True)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    status = 0
    for _ in range(TRIES):
        with (out / LOG).open("a", encoding="utf-8") as log:
            command = [sys.executable, "-P", "-m", "convnn.train.study.trial"]  # -P: nothing is imported from there
            process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, text=True
            )
            with _ended(process):
                if process.stdin is not None:
                    with contextlib.suppress(BrokenPipeError):
                        process.stdin.write(json.dumps(settings) + "\n")
                        process.stdin.flush()
                _follow(process, out / "result.json", report)
            status = process.returncode
        if status >= 0:
            break
    if status == 0:
        return ""
    killed = f"its process was killed by signal {-status}, {TRIES} times" if status < 0 else ""
    return killed or last_line(out / LOG) or f"its process ended with status {status}"


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str]) -> Any:
    """End the process with the block, when something is raised in it."""
    try:
        yield
    finally:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # which lets the run save where it is
        process.wait()


def _follow(process: subprocess.Popen[str], result: Path, report: Callable[[dict[str, Any]], None]) -> None:
    seen = 0
    while True:
        ended = process.poll() is not None
        epochs = read_result(result).get("epochs", [])
        for entry in epochs[seen:]:
            report(entry)
        seen = max(seen, len(epochs))
        if ended:
            return
        time.sleep(POLL)


def read_result(path: Path) -> dict[str, Any]:
    """Return what ``result.json`` holds; nothing where there is none yet, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def main(stream: TextIO | None = None) -> int:
    """Train by the settings that stand in the first line of standard input; return the exit status."""
    stream = stream or sys.stdin
    values = json.loads(stream.readline())
    threading.Thread(target=_end_with, args=(stream,), daemon=True).start()
    try:
        _train(values)
    except (ConvNNError, MissingExtraError, RunError) as error:
        print(error, flush=True)
        return 2 if isinstance(error, ConvNNError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _train(values: dict[str, Any]) -> None:
    from ..run import train
    from ..settings import TrainSettings

    out = Path(values["out"])
    with locked(out):
        settings = TrainSettings(**values)
        train(dataclasses.replace(settings, resume=(out / "settings.yaml").exists()), say=print)


def _end_with(stream: TextIO) -> None:
    """Wait for the end of a stream, then end this process: gently, and after ``GRACE`` seconds in any case."""
    # Not by stream.read(), which holds the stream's lock: a worker that is forked meanwhile closes its standard input,
    # and would wait for that lock for ever.
    while os.read(stream.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(143)


if __name__ == "__main__":
    sys.exit(main())
