"""The settings of ``convnn sweep`` and ``convnn compare``: their fields are the options of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..._utils.settings import check_folder, check_number, check_whole, option, positional
from ...errors import invalid

METRICS = ("test_accuracy", "test_loss", "val_accuracy", "val_loss")


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Settings of ``convnn sweep``."""

    study: str = positional("a study of `convnn recipes`, or a YAML file")
    out: str = option("", "folder of the study, on a cluster one that all machines see; default: studies/NAME")
    data: str = option("", "images for all runs, in place of what the recipe says")
    address: str = option("", "address of a Ray cluster, e.g. auto or ray://host:10001; empty: this machine")
    cpus: float = option(1.0, "cores for each run, and its threads; below 1, several runs share a core")
    gpus: float = option(0.0, "GPUs for each run; 0.25 lets four runs share one")
    at_once: int = option(0, "most runs at the same time; 0: as many as the machine has room for")
    only: str = option("", "names of the variants to run, by glob pattern; empty: all")
    seeds: str = option("", "seeds for all variants in place of the study's, e.g. 0,1,2")
    metric: str = option("test_accuracy", "what is compared at the end: test_accuracy, val_accuracy, ...")
    dry_run: bool = option(False, "list the runs, with what is done already, and stop")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong; the study is read when it is run."""
        check_number("cpus", self.cpus, (0.01, 4096.0), words="above 0")
        check_number("gpus", self.gpus, (0.0, 4096.0), words="of at least 0")
        check_whole("at_once", self.at_once, 0)
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise invalid("gpus", "a share of one GPU, or a whole number", self.gpus, "change it")
        if self.out:
            check_folder("out", self.out)
        check_metric(self.metric)


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Settings of ``convnn compare``."""

    runs: tuple[str, ...] = positional("folders of runs or of studies, or glob patterns of them")
    baseline: str = option("", "name of the variant that the others are compared with; default: the first")
    metric: str = option("test_accuracy", "test_accuracy, test_loss, val_accuracy or val_loss (of the chosen epoch)")
    out: str = option("comparison", "folder for comparison.json, .png, .svg and .html")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong, or if a folder does not exist."""
        check_metric(self.metric)
        check_folder("out", self.out)
        for run in self.runs:
            if not any(sign in run for sign in "*?[") and not Path(run).is_dir():
                raise invalid("runs", "folders that exist, or patterns", repr(run), "check the path")


def check_metric(metric: str) -> None:
    """Raise ConvNNError for what is no result of a run."""
    from ... import _checks as checks

    checks.name("metric", metric, METRICS)
