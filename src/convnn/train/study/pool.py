"""The runs of a study on Ray Tune: as many at the same time as the machines have room for, each in its own process."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..._utils.cores import available_cores
from ...errors import RunError, invalid, missing_extra
from .trial import run_process

Report = Callable[[int, dict[str, Any]], None]
"""Takes the position of a run, and an epoch, or what came of the run: ``{"error": "" or why}``."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Room(NamedTuple):
    """Where runs are and what each takes: a cluster's address, cores, GPUs, how many run at once (0: all), and a folder
    that all machines see for what Ray keeps meanwhile (a temporary one for this machine alone).
    """

    address: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    at_once: int = 0
    storage: str = ""

    @property
    def threads(self) -> int:
        """Threads of one run."""
        return max(1, int(self.cpus))


def run_pool(runs: Sequence[dict[str, Any]], room: Room, report: Report) -> None:
    """Train by every entry of ``runs``, the settings of ``TrainSettings`` by name, and report as they go.

    Raises ConvNNError when one run needs more than this machine has, MissingExtraError without Ray, RunError when Ray
    cannot be started or its cluster cannot be reached. A run that fails is reported, and the others go on.
    """
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    try:
        from ray import tune
    except ImportError as error:
        raise missing_extra(error.name or "ray", "study") from error

    with _ray(room), tempfile.TemporaryDirectory(prefix=".ray-", dir=room.storage or None) as folder:
        tuner = tune.Tuner(
            tune.with_resources(_trial, {"cpu": room.cpus, "gpu": room.gpus}),
            param_space={
                "position": tune.grid_search(list(range(len(runs)))),
                "runs": list(map(dict, runs)),
                "threads": room.threads,
                "folder": os.getcwd(),
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=room.at_once or None),
            run_config=tune.RunConfig(
                name="study", storage_path=folder, callbacks=[_reporter(report)], verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )  # fmt: skip
        tuner.fit()


def _reporter(report: Report) -> Any:
    """Return Ray's callback that hands on what runs report."""
    from ray import tune

    class Reporter(tune.Callback):
        def __init__(self, report: Report | None) -> None:
            self.report = report

        def on_trial_result(self, *_: Any, **info: Any) -> None:
            result = info["result"]
            self._tell(info["trial"], {name: result[name] for name in ("entry", "error") if name in result})

        def on_trial_error(self, *_: Any, **info: Any) -> None:
            self._tell(info["trial"], {"error": "its machine failed; see Ray's log"})

        def _tell(self, trial: Any, news: dict[str, Any]) -> None:
            if self.report is not None:
                self.report(trial.config["position"], news)

        def __reduce__(self) -> Any:  # Ray keeps its callbacks on disk, where nothing could be told
            return type(self), (None,)

    return Reporter(report)


def _trial(config: dict[str, Any]) -> None:
    """Train one run on the machine that Ray has chosen."""
    from ray import tune

    settings, folder = config["runs"][config["position"]], config["folder"]
    error = f"the folder in which the study was started is not on this machine: {folder}"
    if os.path.isdir(folder):  # relative paths are taken from there
        told = {"threads": config["threads"], "report": lambda entry: tune.report({"entry": entry})}
        error = run_process(settings, folder=folder, **told)
    tune.report({"error": error})


@contextmanager
def _ray(room: Room) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; stopped at the end."""
    import ray

    if not room.address and room.cpus > available_cores():
        got = f"{room.cpus:g}"
        raise invalid("cpus", f"at most {available_cores()}, the cores of this machine", got, "lower it")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if room.address:
            ray.init(address=room.address, **quiet)
        else:
            ray.init(num_cpus=available_cores(), include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        raise RunError(f"Ray cannot be used at {room.address or 'this machine'}: {words}") from error
    try:
        found = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = found.get("GPU", 0)
        if room.gpus > gpus:
            raise invalid("gpus", f"at most {gpus:g}, the GPUs that Ray finds", f"{room.gpus:g}", "lower it")
        yield
    finally:
        ray.shutdown()
