"""The settings of ``convnn demo``: their fields are the options of the command line."""

from __future__ import annotations

from dataclasses import dataclass

from .._utils.settings import check_folder, check_whole, option


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of ``convnn demo``."""

    seed: int = option(0, "first seed; the demo trains with this one and the two after it")
    out: str = option("demo", "folder for report.html, results.json and neighbours.png")
    quick: bool = option(False, "one seed and few epochs, under 20 s: to see that everything works")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong."""
        check_whole("seed", self.seed, 0)
        check_folder("out", self.out)
