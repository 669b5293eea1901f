"""The settings of ``convnn profile`` and ``convnn table``: their fields are the options of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _checks as checks
from .._utils.settings import option, positional
from ..errors import invalid
from .counting import check_convention

TABLES = ("headline",)
DEVICES = ("cpu", "cuda", "mps", "meta")
SWAPPING = ("layer", "k", "branch_ratio", "candidates", "similarity", "num_classes", "stem")
"""Fields that say how a model is made; a saved one is made already."""


@dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """Settings of ``convnn profile``."""

    model: str = positional("a model's name (convnn's or timm's), or a folder that save_pretrained wrote")
    layer: str | None = option(None, "what to swap the convolutions or the attention for; default: as the name says")
    k: int | None = option(None, "neighbours of a ConvNN layer")
    branch_ratio: float | None = option(None, "share of a hybrid's channels that come from its ConvNN branch")
    candidates: str | None = option(None, "who may be a neighbour: all, random:32, grid:5 or window:7")
    similarity: str | None = option(None, "how tokens are compared: cosine, dot, euclidean, blend:0.5, ...")
    num_classes: int | None = option(None, "classes; default: the model's own number")
    stem: str | None = option(None, "imagenet, or cifar for 32 x 32 images")
    image_size: int | None = option(None, "side of the square input; default: the model's own")
    batch_size: int = option(1, "images")
    convention: str = option("executed", "how FLOPs are counted: executed, gather or published")
    per_layer: bool = option(False, "a row per layer")
    json: str = option("", "file to write everything to; - for the terminal, instead of the table")
    no_time: bool = option(False, "time nothing")
    runs: int = option(5, "forward passes that are timed")
    device: str = option("cpu", "cpu, cuda, mps, or meta to count without computing")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong; nothing is built."""
        check_convention(self.convention)
        for field in ("k", "num_classes", "image_size"):
            if getattr(self, field) is not None:
                checks.whole(field, getattr(self, field))
        for field in ("batch_size", "runs"):
            checks.whole(field, getattr(self, field))
        checks.name("device", self.device, DEVICES)
        _check_file("json", self.json)
        if not self.model:
            raise invalid("model", "a model's name or a folder", "nothing", "e.g. resnet50_hybrid_random32")
        if self.is_saved:
            for field in SWAPPING:
                if getattr(self, field) is not None:
                    got = repr(getattr(self, field))
                    raise invalid(field, "none for a saved model (it is made already)", got, "leave it out")
        else:
            self._check_made()

    def _check_made(self) -> None:
        from ..models import check_model, parse_candidates, parse_similarity
        from ..models.layers import check_layer

        check_model(self.model)
        if self.layer is not None:
            check_layer(self.layer)
        if self.candidates is not None:
            parse_candidates(self.candidates)
        if self.similarity is not None:
            parse_similarity(self.similarity)

    @property
    def is_saved(self) -> bool:
        """True if the model is a folder."""
        return Path(self.model).is_dir()

    def options(self) -> dict[str, Any]:
        """Return the fields that were given of how to make the model: keywords of ``create_model``."""
        return {name: getattr(self, name) for name in SWAPPING if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Settings of ``convnn table``."""

    name: str = positional("headline: ResNet-50 on ImageNet-1K, published and counted by us")
    json: str = option("", "file to write the table to; - for the terminal, instead of the table")

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong."""
        checks.name("name", self.name, TABLES)
        _check_file("json", self.json)


def _check_file(argument: str, value: str) -> None:
    path = Path(value)
    if value and value != "-" and (path.is_dir() or not path.parent.is_dir()):
        fix = "name a file in a folder that exists, or - for the terminal"
        raise invalid(argument, "a file that can be written", repr(value), fix)
