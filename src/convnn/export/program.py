"""``export``: a model as one file that runs without convnn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from .. import __version__
from .._utils.files import staged
from .._utils.settings import check_whole
from ..errors import invalid
from . import to_onnx
from .settings import check_format, check_path
from .trace import TRACED, check_runs, example_images, for_export, trace
from .verify import Comparison, compare

NOTES = "convnn.json"
"""The name of the notes in a program of ``torch.export`` (``extra_files`` of ``torch.export.load``)."""


@dataclass(frozen=True)
class Exported:
    """The file that ``export`` wrote.

    Attributes:
        path: the file.
        format: ``"onnx"`` or ``"torch-export"``.
        shape: of the input, ``(B, C, H, W)``; B is None where it may be any number.
        opset: the version of ONNX's operators, or None.
        compared: the comparison of its logits with the model's, or None.
    """

    path: Path
    format: str
    shape: tuple[int | None, int, int, int]
    opset: int | None
    compared: Comparison | None

    def __str__(self) -> str:
        batch, channels, height, width = self.shape
        kind = self.format if self.opset is None else f"{self.format}, opset {self.opset}"
        files = (self.path, self.path.with_name(self.path.name + ".data"))  # ONNX beyond 2 GB has the second
        size = sum(file.stat().st_size for file in files if file.exists())
        takes = f"({'any' if batch is None else batch}, {channels}, {height}, {width})"
        return f"{self.path} ({kind}, {size / 1e6:.1f} MB), images {takes}; {self.compared or 'not compared'}"


def export(
    model_or_checkpoint: nn.Module | str | Path,
    path: str | Path,
    *,
    format: str = "onnx",  # noqa: A002  # the usual name
    image_size: int | None = None,
    batch_size: int | Literal["dynamic"] = "dynamic",
    opset: int | None = None,
    verify: bool = True,
    log: Callable[[str], None] | None = None,
) -> Exported:
    """Write a model, in evaluation, as one file of plain operators: ONNX, or a program of ``torch.export``.

    Args:
        model_or_checkpoint: a model ``(B, C, H, W)`` to a tensor, a folder of ``save_pretrained`` or of
            ``convnn train``, or a ``.ckpt`` file of such a run.
        path: the file to write; ``.onnx`` or ``.pt2``.
        format: ``"onnx"`` (in float32; input ``images``, output ``logits``) or ``"torch-export"`` (in the model's
            dtype). Neither needs convnn to run.
        image_size: side of the images; the model's own if left out.
        batch_size: images at a time; ``"dynamic"`` for any number.
        opset: the version of ONNX's operators; PyTorch's choice if left out.
        verify: whether to run the file and compare its logits with the model's on random images.
        log: called with a line for each step.

    Returns:
        The file, the shape of its input, and the comparison of its logits with the model's.

    Raises:
        ConvNNError: an argument is wrong, the model cannot be exported, or the file does not compute the same.
        MissingExtraError: a package of ``convnn[export]`` is not installed.

    Example:
        >>> import tempfile
        >>> from convnn.models import create_model
        >>> model = create_model("small_cnn", num_classes=3, layer="convnn", image_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = export(model, f"{folder}/model.pt2", format="torch-export")
        ...     loaded = torch.export.load(exported.path).module()
        >>> exported.shape, loaded(torch.zeros(5, 3, 8, 8)).shape
        ((None, 3, 8, 8), torch.Size([5, 3]))
    """
    from .source import load_source  # it imports timm, which the command's help does not need

    path, log = Path(path), log or _silent
    batch = None if batch_size == "dynamic" else batch_size
    check_format(format, opset)
    check_path(path, format, argument="path")
    check_whole("image_size", image_size, 1, optional=True)
    check_whole("batch_size", batch, 1, optional=True)
    if format == "onnx":
        to_onnx.check_installed()
    if not isinstance(model_or_checkpoint, nn.Module):
        log(f"Loading {model_or_checkpoint}")
    source = load_source(model_or_checkpoint)
    size = image_size or source.size
    if size is None:
        raise invalid("image_size", "the side of the images (the model does not say it)", None, "give it")
    model = for_export(source.model, dtype=torch.float32 if format == "onnx" else None)
    shape = (source.channels, size, size)
    images = example_images(model, shape, batch or TRACED)
    check_runs(model, images)
    count = "any number" if batch is None else str(batch)
    log(f"Tracing {source.name} for images of {size} x {size}, {count} at a time")
    without = to_onnx.not_in_onnx() if format == "onnx" else None
    program = trace(model, images, any_batch=batch is None, without=without)
    notes = {"convnn_version": json.dumps(__version__), **source.notes}
    with _staged(path) as file:
        log(f"Writing {path}")
        used = _write(program, file, format, opset, notes)
        compared = None
        if verify:
            batches = (1, 3) if batch is None else (batch, batch)
            log(f"Running it on {' and '.join(map(str, batches))} random images, beside the model")
            compared = compare(_runner(file, format), program, model, shape=shape, batches=batches)
    return Exported(path, format, (batch, *shape), used, compared)


def _silent(_: str) -> None:
    """Print nothing."""


def _write(program: ExportedProgram, file: Path, kind: str, opset: int | None, notes: dict[str, str]) -> int | None:
    if kind == "onnx":
        return to_onnx.save_onnx(program, file, opset=opset, notes=notes)
    described = {name: json.loads(value) for name, value in notes.items()}
    torch.export.save(program, file, extra_files={NOTES: json.dumps(described)})
    return None


def _runner(file: Path, kind: str) -> Callable[[Tensor], Tensor]:
    if kind == "onnx":
        return to_onnx.onnx_runner(file)
    return torch.export.load(file).module()


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; its files are moved beside ``path`` at the end, if nothing is raised."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(staged(path.parent))
        except OSError as error:
            got = f"{str(path)!r} ({error.strerror})"
            raise invalid("path", "a file that can be written", got, "choose another") from error
        yield folder / path.name
