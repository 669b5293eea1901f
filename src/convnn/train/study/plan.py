"""What a study runs: its file, expanded into one entry for each variant and seed, and checked before any of it runs."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..._utils.settings import check_types
from ...errors import ConvNNError, invalid, unknown_name
from ..recipes import load_recipe, load_study
from ..settings import TrainSettings

KEYS = ("recipe", "settings", "grid", "variants", "seeds", "baseline")
RESERVED = ("out", "resume", "auto_resume", "seed", "seeds", "recipe", "progress")
"""Settings that the study decides itself."""


class Run(NamedTuple):
    """One run of a study: the variant's name, the seed, and the settings beyond the defaults of ``convnn train``."""

    variant: str
    seed: int
    settings: dict[str, Any]

    @property
    def folder(self) -> str:
        """Where the run is, in the folder of the study."""
        return f"{self.variant}/seed-{self.seed}"


class Plan(NamedTuple):
    """A study, expanded: its name, what it says about itself, the variant to compare with, and the runs."""

    name: str
    about: dict[str, str]
    baseline: str
    runs: tuple[Run, ...]


def read_plan(study: str) -> Plan:
    """Return what a study runs, by its name or the path of its file.

    The file has, beside ``study:``, the keys ``recipe`` (a name, a path or a list of them; left out: the defaults of
    ``convnn train``), ``settings`` for all runs, ``variants`` (a mapping of names to settings, each perhaps with its
    own ``grid`` and ``seeds``), ``grid`` (settings to lists of values, all combined), ``seeds`` and ``baseline`` (a
    variant's name). ``model_options.kernel_size`` sets one key of a setting that is a mapping.

    Raises ConvNNError for a file that is no study; the settings themselves are checked by ``check_plan``.

    >>> [run.folder for run in read_plan("vgg11_learning_rate").runs][:2]
    ['conv,lr=1e-05/seed-0', 'conv,lr=1e-05/seed-1']
    """
    found = load_study(study)
    content = found.settings
    for key in content:
        if key not in KEYS:
            raise unknown_name(key, key, KEYS)
    recipes = content.get("recipe", "")
    several = isinstance(recipes, list)
    runs: list[Run] = []
    for recipe in recipes if several else [recipes]:
        base = _base(recipe, found.path)
        base = merged(base, _mapping("settings", content.get("settings")))
        prefix = Path(recipe).stem if several else ""
        runs += _variants(content, base, prefix)
    names = list(dict.fromkeys(run.variant for run in runs))
    baseline = content.get("baseline") or names[0]
    if baseline not in names:
        raise unknown_name("baseline", baseline, names)
    folders = [run.folder for run in runs]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise invalid("variants", "names that differ", f"two runs {twice!r}", "rename one of them")
    return Plan(found.name, found.about, baseline, tuple(runs))


def select(plan: Plan, *, only: str = "", seeds: str = "") -> Plan:
    """Return a plan of the variants that a glob pattern names, with other seeds if some are given as ``0,1,2``.

    Raises ConvNNError for a pattern that names no variant, or seeds that are no whole numbers.
    """
    runs = [run for run in plan.runs if not only or fnmatch.fnmatchcase(run.variant, only)]
    if not runs:
        raise invalid("only", "a pattern that matches a variant", repr(only), "see --dry-run for their names")
    if seeds:
        try:
            numbers = [int(seed) for seed in seeds.split(",")]
        except ValueError as error:
            raise invalid("seeds", "whole numbers such as 0,1,2", repr(seeds), "change it") from error
        _seeds(numbers)
        first = {run.variant: run for run in reversed(runs)}
        variants = dict.fromkeys(run.variant for run in runs)
        runs = [first[name]._replace(seed=seed) for name in variants for seed in numbers]
    return plan._replace(runs=tuple(runs))


def check_plan(plan: Plan, *, out: Path, data: str = "") -> list[TrainSettings]:
    """Return the settings of every run; raises ConvNNError, with the variant, for the first that is wrong.

    Names, types and combinations are checked, and that the data exist; nothing is read or trained.
    """
    checked: dict[str, None] = {}
    settings = []
    for run in plan.runs:
        try:
            one = train_settings(run, out=out, data=data)
            check_types(one)
            if run.variant not in checked:  # seeds do not change what fits
                one.check()
        except ConvNNError as error:
            raise ConvNNError(f"{run.variant}: {error}") from error
        checked[run.variant] = None
        settings.append(one)
    return settings


def train_settings(run: Run, *, out: Path, data: str = "") -> TrainSettings:
    """Return a run's settings as ``convnn train`` takes them; raises ConvNNError for a key or a type that is wrong."""
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    for key in run.settings:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            fix = f"did you mean {close[0]}?" if close else "see convnn train --help"
            raise invalid(key, "an option of convnn train", "an unknown one", fix)
        if key in RESERVED:
            raise invalid(key, "none (the study sets it)", repr(run.settings[key]), "leave it out")
    values = {**run.settings, "seed": run.seed, "out": str(out / run.folder), "progress": False}
    return TrainSettings(**(values | ({"data": data} if data else {})))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with others laid over them: mappings are merged, and ``a.b`` is the key b of the mapping a.

    >>> merged({"lr": 1, "model_options": {"k": 2}}, {"lr": 3, "model_options.size": 4})
    {'lr': 3, 'model_options': {'k': 2, 'size': 4}}
    """
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        name, dot, inner = key.partition(".")
        value = {inner: value} if dot else value
        before = result.get(name)
        result[name] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _base(recipe: str, study: Path) -> dict[str, Any]:
    """Return the settings of a study's recipe: a name, or a path from the folder of the study."""
    if not isinstance(recipe, str):
        raise invalid("recipe", "a name, a path or a list of them", repr(recipe), "see convnn recipes")
    beside = study.parent / recipe
    named = str(beside) if recipe and beside.is_file() else recipe
    return load_recipe(named).settings if recipe else {}


def _variants(content: Mapping[str, Any], base: dict[str, Any], prefix: str) -> Iterator[Run]:
    variants = _mapping("variants", content.get("variants")) or {"": {}}
    for name, given in variants.items():
        own = dict(_mapping(f"variants.{name}", given))
        grid = _mapping("grid", own.pop("grid", content.get("grid")))
        seeds = _seeds(own.pop("seeds", content.get("seeds", [0])))
        values = [_listed(key, grid[key]) for key in grid]
        for chosen in itertools.product(*values):
            point = dict(zip(grid, chosen, strict=True))
            parts = [prefix, str(name), *(f"{key.rpartition('.')[2]}={_word(value)}" for key, value in point.items())]
            variant = ",".join(filter(None, parts)) or "run"
            yield from (Run(_safe(variant), seed, merged(merged(base, own), point)) for seed in seeds)


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(key, "keys and values", repr(value)[:60], "write one key: value a line")
    return value


def _listed(key: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise invalid(f"grid.{key}", "a list of values", repr(value)[:60], "write [one, two]")
    return value


def _seeds(value: Any) -> list[int]:
    good = isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value)
    if not good or len(set(value)) != len(value):
        raise invalid("seeds", "different whole numbers of at least 0", repr(value), "e.g. [0, 1, 2]")
    return list(value)


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _safe(name: str) -> str:
    """Return a variant's name as the name of a folder: signs that file systems do not take become hyphens."""
    return re.sub(r"[^\w.,=+-]+", "-", name).strip("-.")
