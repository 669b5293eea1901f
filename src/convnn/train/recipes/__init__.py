"""Recipes and studies by name: the YAML files beside this module, and a user's own by their path.

A recipe holds settings of ``convnn train``, a study what to run of a recipe for ``convnn sweep``; both begin with a
block that says what they reproduce: ``title``, ``source``, ``expected``, ``cost`` and ``notes``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ...errors import invalid, unknown_name
from .reading import load_yaml

FOLDER = Path(__file__).parent
ABOUT = ("title", "source", "expected", "cost", "notes")
"""The keys of the block ``recipe:`` or ``study:``."""


class Recipe(NamedTuple):
    """A recipe or a study: its name, its file, what it says about itself, and the rest of the file."""

    name: str
    path: Path
    about: dict[str, str]
    settings: dict[str, Any]


def list_recipes() -> list[Recipe]:
    """Return the recipes of the package, by name.

    >>> [recipe.name for recipe in list_recipes()][0]
    'cifar10_fast'
    """
    return [load_recipe(path.stem) for path in sorted(FOLDER.glob("*.yaml"))]


def list_studies() -> list[Recipe]:
    """Return the studies of the package, by name."""
    return [load_study(path.stem) for path in sorted((FOLDER / "studies").glob("*.yaml"))]


def load_recipe(name: str) -> Recipe:
    """Return a recipe by its name, or by the path of its file; its settings are not checked.

    Raises ConvNNError for an unknown name, a missing file, or a file that is no recipe.

    >>> load_recipe("vgg11_cifar10").settings["epochs"]
    150
    """
    return _load(name, folder=FOLDER, block="recipe")


def load_study(name: str) -> Recipe:
    """Return a study by its name, or by the path of its file; ``settings`` is what the file has beside ``study:``.

    Raises ConvNNError as ``load_recipe`` does.
    """
    return _load(name, folder=FOLDER / "studies", block="study")


def find_file(name: str) -> Path:
    """Return the file of a recipe or a study of the package; raises ConvNNError for another name.

    >>> find_file("vgg11_cifar10").name
    'vgg11_cifar10.yaml'
    """
    known = {path.stem: path for path in (*sorted(FOLDER.glob("*.yaml")), *sorted(FOLDER.glob("studies/*.yaml")))}
    if name not in known:
        raise unknown_name("name", name, known)
    return known[name]


def settings_of(name: str) -> dict[str, Any]:
    """Return the settings of a recipe, which are the defaults of ``convnn train NAME``."""
    return load_recipe(name).settings


def _load(name: str, *, folder: Path, block: str) -> Recipe:
    path = _find(name, folder=folder, argument=block)
    content = load_yaml(path, argument=block)
    about = content.pop(block, None) or {}
    if not isinstance(about, dict) and block == "recipe":
        about = {}  # the settings of a run name the recipe that it came from
    if not isinstance(about, dict):
        raise invalid(block, f"keys out of {', '.join(ABOUT)}", repr(about)[:60], f"mend {path.name}")
    for key, value in about.items():
        if key not in ABOUT:
            raise unknown_name(f"{block}.{key}", key, ABOUT)
        if not isinstance(value, str):
            raise invalid(f"{block}.{key}", "text", repr(value), "write it in quotes")
    return Recipe(path.stem, path, {key: " ".join(about[key].split()) for key in about}, content)


def _find(name: str, *, folder: Path, argument: str) -> Path:
    """Return the file of a name or path; what has a slash or an ending is a path."""
    if Path(name).suffix in (".yaml", ".yml") or len(Path(name).parts) > 1:
        if not Path(name).is_file():
            raise invalid(argument, "a YAML file, or a name of `convnn recipes`", repr(name), "check the path")
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise unknown_name(argument, name, known)
    return folder / f"{name}.yaml"
