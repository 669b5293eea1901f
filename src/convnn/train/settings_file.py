"""Settings on disk: the YAML file that a run writes, and the settings of a run to resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from .._utils.files import staged
from ..errors import invalid, missing_extra
from .settings import RUNTIME_ONLY, TrainSettings


def save_settings(settings: TrainSettings, path: Path) -> None:
    """Write the settings as YAML that ``convnn train --config`` reads; raises MissingExtraError without PyYAML."""
    yaml = _yaml()
    values = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("resume", "auto_resume")}
    with staged(path.parent) as temporary:
        (temporary / path.name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def load_settings(path: Path) -> TrainSettings:
    """Read settings that ``save_settings`` wrote; raises ConvNNError when the file is missing or is not such a file."""
    if not path.is_file():
        raise invalid(
            "out", f"a folder with a run to resume ({path.name} in it)", repr(str(path.parent)), "check --out"
        )
    values = _yaml().safe_load(path.read_text(encoding="utf-8"))
    known = {field.name for field in dataclasses.fields(TrainSettings)}
    if not isinstance(values, dict) or not set(values) <= known:
        raise invalid(
            path.name, "the settings of convnn train", repr(values)[:80], "restore the file that the run wrote"
        )
    return TrainSettings(**values)


def resumed(settings: TrainSettings) -> TrainSettings:
    """Return the settings of the run in ``settings.out``, to resume it exactly.

    What only decides where and how fast it runs (``RUNTIME_ONLY``) is taken from ``settings``. Raises ConvNNError when
    there is no run, or when a field is given that differs from the run's.
    """
    saved = load_settings(Path(settings.out) / "settings.yaml")
    for field in dataclasses.fields(TrainSettings):
        given, before = (_plain(getattr(one, field.name)) for one in (settings, saved))
        if field.name not in RUNTIME_ONLY and given not in (field.default, before):
            expected = f"{before!r}, as the run in {settings.out} was started"
            raise invalid(field.name, expected, repr(given), "leave it out to resume, or start again in another --out")
    return dataclasses.replace(saved, **{name: getattr(settings, name) for name in RUNTIME_ONLY})


def _plain(value: Any) -> Any:
    """Return a tuple as the list that YAML makes of it."""
    return list(value) if isinstance(value, tuple) else value


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("PyYAML", "cli") from error
    return yaml
