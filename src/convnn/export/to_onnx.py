"""A traced program as an ONNX file, and running that file in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .._utils.quiet import quiet_exporters
from ..errors import invalid, missing_extra
from ..ops.nearest import best, plain_nearest

INPUT, OUTPUT = "images", "logits"
"""The names of the exported model's input ``(B, C, H, W)`` and output."""


def check_installed() -> None:
    """Raise MissingExtraError, before anything is computed, where a package that the export needs is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from error


def not_in_onnx() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of the operators of our layers that ONNX does not have."""
    return {
        torch.ops.aten.sort.stable: _sort,
        torch.ops.aten.median.dim: _median,
        torch.ops.convnn.nearest_euclidean.default: _nearest_euclidean,
    }


def save_onnx(program: ExportedProgram, path: Path, *, opset: int | None, notes: dict[str, str]) -> int:
    """Write a program, traced without ``not_in_onnx``, as ONNX with ``notes`` in its metadata; return the opset.

    Weights beyond ONNX's 2 GB are written beside it, as ``NAME.onnx.data``.
    """
    try:
        with quiet_exporters():
            written: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT], opset_version=opset
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
        fix = "export it with format='torch-export', or another opset"
        raise invalid("model", "one whose operators ONNX has", reason, fix) from error
    model = written.model
    model.producer_name = "convnn"
    model.metadata_props.clear()
    model.metadata_props.update(notes)
    model.graph.metadata_props.clear()
    for node in model.graph:
        namespace = node.metadata_props.get("namespace")
        node.metadata_props.clear()
        if namespace is not None:  # the layer of a node, by which viewers group
            node.metadata_props["namespace"] = namespace
    _name_batch(model)
    used = int(model.opset_imports[""])
    if opset not in (None, used):  # the exporter only notes it
        raise invalid("opset", f"one that PyTorch can write for this model ({used} is)", opset, "leave it out")
    written.save(path)
    return used


def _name_batch(model: Any) -> None:
    """Name the free axis ``batch``, which the tracer numbered."""
    first = str(model.graph.inputs[0].shape[0])
    if first.isdecimal():
        return
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            sizes = [n if isinstance(n, int) else re.sub(rf"\b{first}\b", "batch", str(n)) for n in value.shape]
            value.shape = type(value.shape)(sizes)


def _sort(x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Sort by a top-k of everything: ONNX has no sort, and its TopK takes equal numbers lowest index first."""
    return torch.topk(x, x.shape[dim], dim=dim, largest=descending, sorted=True)


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Take the median, the lower of two in the middle, from the sorted values: ONNX has no median."""
    middle = (x.shape[dim] - 1) // 2
    values, index = (part.narrow(dim, middle, 1) for part in _sort(x, dim=dim))
    return (values, index) if keepdim else (values.squeeze(dim), index.squeeze(dim))


def _nearest_euclidean(query: Tensor, key: Tensor, factor: Tensor | None, *rest: Any) -> Tensor:
    """Search by products in float64 of coordinates from their mean, or by differences where ties count.

    ONNX has no ``cdist``, and the differences of all pairs are C times as many numbers.
    """
    query_position, key_position, masked, skip, k, stable = rest
    center = key.nan_to_num(0, 0, 0).mean(1, keepdim=True).double()
    query, key = query.double() - center, key.double() - center
    if factor is not None and query_position is not None:
        query = torch.cat([query * factor, query_position.double().expand(query.shape[0], -1, -1)], 2)
        key = torch.cat([key * factor, key_position.double().expand(query.shape[0], -1, -1)], 2)
    if stable:
        return best(-(query.unsqueeze(2) - key.unsqueeze(1)).square().sum(-1), masked, skip, k, stable)
    return plain_nearest(query, key, key.square().sum(-1) * -0.5, masked, skip, k, stable)


def onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an ONNX file on the CPU: images ``(B, C, H, W)`` to logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)

    return run
