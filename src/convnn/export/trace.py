"""Tracing of a model to a program of plain operators, for images of one size and any number of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .._utils.quiet import quiet_exporters
from ..errors import ConvNNError, invalid
from ..nn.layer import NeighborLayer
from ..ops.registry import NAMESPACE, PLAIN_FORMS, TWINS
from ..types import Random

TRACED = 2
"""Images in the batch that a program of any batch size is traced with: a size of 1 would become a constant."""


def for_export(model: nn.Module, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Return a copy of a model on the CPU, in eval mode, in which every layer may choose how it runs."""
    # All implementations compute the same; the reference would be traced query by query.
    copied = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for layer in copied.modules():
        if isinstance(layer, NeighborLayer):
            layer.impl = "auto"
    return copied if dtype is None else copied.to(dtype)


def example_images(model: nn.Module, shape: tuple[int, int, int], batch: int, *, seed: int = 0) -> Tensor:
    """Return random images ``(batch, C, H, W)`` in the dtype of the model's weights."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=generator).to(dtype_of(model))


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's first floating-point parameter; float32 where there is none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def check_runs(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits ``(B, ...)``; raises ConvNNError if the model cannot run or returns no finite tensor."""
    size = f"{tuple(images.shape[1:])}"
    try:
        with torch.no_grad():
            logits = model(images)
    except ConvNNError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        got = f"{size}, at which a {type(model).__name__} says: {_first_line(error)}"
        raise invalid("image_size", "images that the model takes", got, "give the size it was made for") from error
    if not isinstance(logits, Tensor):
        fix = "wrap it in a module that returns one of them"
        raise invalid("model", "one that returns a tensor", f"a {type(logits).__name__}", fix)
    if not bool(logits.isfinite().all()):
        raise invalid("model", "finite results on random images", f"nan or inf at {size}", "check its weights")
    return logits


def trace(
    model: nn.Module, images: Tensor, *, any_batch: bool, without: dict[Any, Callable[..., Any]] | None = None
) -> ExportedProgram:
    """Trace a model that ``for_export`` returned into a program without any operator of convnn's own.

    ``without`` has the decompositions of further operators to remove. Raises ConvNNError for a
    model that cannot be traced.
    """
    shapes = ({0: Dim("batch", min=1)},) if any_batch else None
    try:
        # With gradients off outside, the searches do not add an operator that switches them off. Deterministic mode
        # would make them compare pair by pair: B N M C numbers at once.
        with torch.no_grad(), quiet_exporters(), deterministic(False), _fixed_draws(model, images):
            program: ExportedProgram = torch.export.export(model, (images,), dynamic_shapes=shapes)
            forms = {**PLAIN_FORMS, **(without or {})}
            program = program.run_decompositions(forms | {twin: forms[op] for twin, op in TWINS.items()})
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        got = f"a {type(model).__name__} ({_first_line(error)})"
        fix = "try a fixed batch_size; docs/export.md has the limits"
        raise invalid("model", "one that torch.export can trace", got, fix) from error
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            _check_plain(part)
            _drop_stack_traces(part)
    return program


@contextmanager
def _fixed_draws(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Replace random candidates by the positions that an evaluation draws in images of this size.

    The seeded draw is a hash of positions, which a program would otherwise compute at every call.
    """
    layers = [part for part in model.modules() if isinstance(part, NeighborLayer)]
    before = {layer: layer.candidates for layer in layers if isinstance(layer.candidates, Random)}
    draws: dict[NeighborLayer, list[Tensor]] = {layer: [] for layer in before}
    try:
        for layer, candidates in before.items():
            layer.candidates = _recording(candidates, draws[layer])
        model(images)
        for layer, positions in draws.items():
            same = bool(positions) and all(torch.equal(positions[0], other) for other in positions)
            layer.candidates = positions[0] if same else before[layer]  # a layer may be used at several sizes
        yield
    finally:
        for layer, candidates in before.items():
            layer.candidates = candidates


def _recording(candidates: Random, draws: list[Tensor]) -> Random:
    """Return the same candidates, with every draw appended to ``draws``."""

    class Recording(Random):
        def draw(self, tokens: int, device: torch.device) -> Tensor:
            draws.append(super().draw(tokens, device))
            return draws[-1]

    return Recording(candidates.r, candidates.seed, candidates.generator)


def _check_plain(part: torch.fx.GraphModule) -> None:
    left = {str(n.target) for n in part.graph.nodes if getattr(n.target, "namespace", None) == NAMESPACE}
    if left:
        got = ", ".join(sorted(left))
        raise invalid("model", "layers whose operators have plain forms", got, "leave those layers out of the export")


def _drop_stack_traces(part: torch.fx.GraphModule) -> None:
    """Drop the stack traces of the model's code: file and folder names would be saved with the program."""
    for node in part.graph.nodes:
        node.meta.pop("stack_trace", None)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:197] + "..."


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Take equal similarities lowest index first, as ONNX does, or any of them."""
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(on, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
