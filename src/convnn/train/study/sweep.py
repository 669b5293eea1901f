"""``convnn sweep``: the runs of a study, those that are left; then the comparison of all that are finished."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..._utils.files import make_folder, write_json
from ...errors import ConvNNError, RunError, invalid
from ..recipes import load_study
from ..settings import RUNTIME_ONLY, TrainSettings
from ..settings_file import load_settings
from .compare import compare
from .figure import draw
from .page import write_page
from .plan import Plan, check_plan, read_plan, select
from .pool import Room, run_pool
from .settings import SweepSettings
from .trial import read_result

Pool = Callable[[Sequence[dict[str, Any]], Room, Callable[[int, dict[str, Any]], None]], None]


class Watch(Protocol):
    """What is told of a sweep as it goes."""

    def epoch(self, folder: str, entry: dict[str, Any]) -> None:
        """Take a finished epoch of a run."""

    def ended(self, folder: str, result: dict[str, Any], error: str) -> None:
        """Take the end of a run: its result, or why it has none."""


def plan_of(settings: SweepSettings) -> tuple[Plan, Path, list[TrainSettings]]:
    """Return what a sweep runs, in which folder, and every run's settings, checked.

    Raises ConvNNError for a study or a setting that is wrong, and for a folder with runs of other settings.
    """
    plan = select(read_plan(settings.study), only=settings.only, seeds=settings.seeds)
    out = Path(settings.out or f"studies/{plan.name}").absolute()
    runs = check_plan(plan, out=out, data=settings.data)
    for run in runs:
        _check_same(run)
    return plan, out, runs


def sweep(settings: SweepSettings, *, watch: Watch, pool: Pool = run_pool) -> dict[str, Any]:
    """Run what is left of a study, and return the comparison of its finished runs, which is also written.

    A finished run is not run again, and one that was cut off goes on from its last checkpoint: to resume a study is
    to call it again. A run that fails does not stop the others.

    Raises:
        ConvNNError: as ``plan_of`` does; a run needs more than the machine has.
        RunError: no run has finished, or some have failed; the others are compared before.
        MissingExtraError: an optional package is not installed.
    """
    plan, out, runs = plan_of(settings)
    todo = [run for run in runs if not finished(run)]
    make_folder(out)
    shutil.copyfile(load_study(settings.study).path, out / "study.yaml")
    errors: dict[str, str] = {}

    def report(position: int, news: dict[str, Any]) -> None:
        folder = str(Path(todo[position].out).relative_to(out))
        if "entry" in news:
            watch.epoch(folder, news["entry"])
        if "error" in news:
            if news["error"]:
                errors[folder] = news["error"]
            watch.ended(folder, read_result(Path(todo[position].out) / "result.json"), news["error"])

    if todo:
        storage = str(out) if settings.address else ""
        room = Room(settings.address, settings.cpus, settings.gpus, settings.at_once, storage)
        pool([dataclasses.asdict(run) for run in todo], room, report)
    missing = [run for run in runs if not finished(run)]
    if len(missing) == len(runs):
        raise RunError(f"no run of {plan.name} has finished; {_why(errors)}")
    results = write_comparison(
        [run.out for run in runs if finished(run)],
        out=out, baseline=plan.baseline, metric=settings.metric, about=plan.about,
    )  # fmt: skip
    if missing:
        raise RunError(f"{len(missing)} of {len(runs)} runs have not finished; {_why(errors)}")
    return results


def finished(run: TrainSettings) -> bool:
    """Return True if there is nothing left to do of a run."""
    return read_result(Path(run.out) / "result.json").get("status") == "finished"


def write_comparison(
    runs: Sequence[str],
    *,
    out: Path,
    baseline: str = "",
    metric: str = "test_accuracy",
    about: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Compare runs and write ``comparison.json``, ``.png``, ``.svg`` and ``.html`` to ``out``; return the comparison.

    A ``baseline`` of which no run has finished gives its place to the first variant. Raises what ``compare`` does.
    """
    names = {Path(run).parent.name for run in runs}
    known = baseline if about is None or baseline in names else ""
    results = compare(runs, baseline=known, metric=metric)
    make_folder(out)
    write_json(out / "comparison.json", results)
    _, svg = draw(results, out)
    write_page(results, out / "comparison.html", figure=svg.read_text(encoding="utf-8"), about=about)
    return results


def _check_same(run: TrainSettings) -> None:
    """Raise ConvNNError if the folder of a run has another run in it."""
    path = Path(run.out) / "settings.yaml"
    if not path.is_file():
        return
    before = load_settings(path)
    for field in dataclasses.fields(TrainSettings):
        old, new = getattr(before, field.name), getattr(run, field.name)
        if field.name not in RUNTIME_ONLY and _plain(old) != _plain(new):
            error = invalid(field.name, f"{old!r}, as the run in {run.out} has it", repr(new), "choose another --out")
            raise ConvNNError(f"out: {error}")


def _plain(value: Any) -> Any:
    """Return a value as YAML reads it again."""
    return list(value) if isinstance(value, tuple) else value


def _why(errors: dict[str, str]) -> str:
    first = next(iter(errors.items()), None)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{first[0]}: {first[1]}{more}" if first else "run the study again to go on"
