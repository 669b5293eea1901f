"""The settings of ``convnn export``: their fields are the options of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import _checks as checks
from .._utils.settings import check_whole, option, positional
from ..errors import invalid

FORMATS = {"onnx": ".onnx", "torch-export": ".pt2"}
"""The formats, and the suffixes of their files."""
LEAST_OPSET = 18
"""The lowest version of ONNX's operators that PyTorch's exporter writes."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of ``convnn export``.

    >>> ExportSettings(checkpoint="runs/default", format="torch-export").path
    PosixPath('runs/default/model.pt2')
    """

    checkpoint: str = positional("folder of save_pretrained or of convnn train, or a .ckpt file in one")
    format: str = option("onnx", "onnx, or torch-export (a program of torch.export)")
    out: str = option("", "file to write; default: model.onnx or model.pt2 beside the checkpoint")
    image_size: int | None = option(None, "side of the square images; default: the model's own")
    batch_size: int | None = option(None, "a fixed number of images at a time; default: any number")
    opset: int | None = option(None, f"version of ONNX's operators, {LEAST_OPSET} or above; default: PyTorch's choice")
    verify: bool = option(True, "compare the exported model with the model")

    @property
    def path(self) -> Path:
        """Return the file to write."""
        if self.out:
            return Path(self.out)
        source = Path(self.checkpoint)
        return (source if source.is_dir() or not source.suffix else source.parent) / ("model" + FORMATS[self.format])

    def check(self) -> None:
        """Raise ConvNNError for the first field that is wrong; of files only the existence is checked."""
        if not Path(self.checkpoint).exists():
            expected = "a folder of save_pretrained or convnn train, or a .ckpt file"
            raise invalid("checkpoint", expected, f"{self.checkpoint!r}, which does not exist", "check the path")
        check_format(self.format, self.opset)
        check_path(self.path, self.format, argument="out")
        for field in ("image_size", "batch_size"):
            check_whole(field, getattr(self, field), 1, optional=True)


def check_format(name: str, opset: int | None) -> None:
    """Raise ConvNNError for an unknown format, or an opset that is too low or given for another format than ONNX."""
    checks.name("format", name, FORMATS)
    if opset is not None and name != "onnx":
        raise invalid("opset", "none (it is ONNX's)", opset, 'leave it out, or use format "onnx"')
    check_whole("opset", opset, LEAST_OPSET, optional=True)


def check_path(path: Path, name: str, *, argument: str) -> None:
    """Raise ConvNNError for a file whose name does not end as the format's do, and one that is a folder."""
    suffix = FORMATS[name]
    if path.suffix != suffix or path.is_dir():
        fix = f"name it {path.with_suffix(suffix).name!r}, say" if path.name else "give one"
        raise invalid(argument, f"a file name that ends with {suffix!r} (format {name})", repr(str(path)), fix)
