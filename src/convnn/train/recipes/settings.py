"""The settings of ``convnn recipes``."""

from __future__ import annotations

from dataclasses import dataclass

from ..._utils.settings import positional
from . import find_file


@dataclass(frozen=True, kw_only=True)
class RecipesSettings:
    """Settings of ``convnn recipes``."""

    name: str = positional("a recipe or a study, whose file is printed; left out: a table of all", default="")

    def check(self) -> None:
        """Raise ConvNNError for a name that is neither a recipe nor a study."""
        if self.name:
            find_file(self.name)
