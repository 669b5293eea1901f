"""YAML files that users write: read without running anything in them, and refused in one line where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import invalid, missing_extra


def load_yaml(path: Path, *, argument: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Numbers may be written as ``1e-4``, which YAML 1.1 would read as text. Raises ConvNNError for a file that cannot be
    read, is no YAML, repeats a key, or holds something else than keys and values; MissingExtraError without PyYAML.
    """
    yaml = _module()
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())  # derived from SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise invalid(argument, "a YAML file that can be read", f"{str(path)!r} ({error})", "check the path") from error
    except yaml.YAMLError as error:
        words = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        raise invalid(argument, "a YAML file", f"{str(path)!r}{line}: {words}", "mend the file") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        got = f"{str(path)!r} with {type(content).__name__}"
        raise invalid(argument, "a YAML file of keys and values", got, "write one key: value a line")
    return content


def _module() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_extra("PyYAML", "cli") from error
    return yaml


def _loader() -> Any:
    """Return a safe loader that reads ``1e-4`` as a number and refuses keys that stand twice in one mapping."""
    import re

    yaml = _module()

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]  # the package has no types
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} stands twice", key.start_mark)
                seen.add(key.value)
            return dict(super().construct_mapping(node, deep=deep))

    number = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader
