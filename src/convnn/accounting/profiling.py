"""``profile``: what a model costs, in whole and row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import checks
from .._utils.files import to_json
from ..errors import invalid
from .counting import Record, check_convention, count_parameters, record_products
from .memory import activation_bytes
from .timing import Times, forward_times

if TYPE_CHECKING:
    from rich.table import Table

_TOO_SMALL = "more than 1 value per channel"  # what torch's batch norm says of a batch that it cannot train on


@dataclass(frozen=True)
class ProfileRow:
    """What one layer costs, or what a container of layers does itself.

    Parameters, FLOPs and bytes of all rows add up to the profile's. Milliseconds are timed apart, with hooks.

    Attributes:
        name: the layer's in the model, as in ``named_modules``; empty for the model itself.
        kind: its class.
        calls: how often it is called in one forward pass.
        parameters: how many, those shared with an earlier row left out.
        flops: 2 x multiply-adds in the profile's convention.
        operators: the same, by operator.
        activation_bytes: what autograd keeps for the backward pass; None if not measured.
        milliseconds: median of the forward passes; None if not measured.
    """

    name: str
    kind: str
    calls: int
    parameters: int
    flops: int
    operators: Mapping[str, int]
    activation_bytes: int | None
    milliseconds: float | None


@dataclass(frozen=True)
class Profile:
    """What a model costs for one input.

    Attributes:
        model: its class, or the name that it was asked for by.
        convention: how FLOPs are counted: ``"executed"``, ``"gather"`` or ``"published"``.
        inputs: the shapes of the inputs.
        device: where it ran.
        parameters: how many, shared ones once.
        flops: 2 x multiply-adds of one forward pass in the convention.
        operators: the same, by operator (``"conv2d"``, ``"mm"``, ``"addmm"``, ``"bmm"``, ``"nearest"``, ...).
        activation_bytes: what autograd keeps between a forward and a backward pass in training; None if not measured.
        milliseconds: median of the forward passes (eval mode, no gradients); None if not measured.
        times: all of them, in milliseconds.
        rows: a row per layer, in the order of the model.
        notes: what was not measured, and why.
    """

    model: str
    convention: str
    inputs: tuple[tuple[int, ...], ...]
    device: str
    parameters: int
    flops: int
    operators: Mapping[str, int]
    activation_bytes: int | None
    milliseconds: float | None
    times: tuple[float, ...]
    rows: tuple[ProfileRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def gflops(self) -> float:
        """The FLOPs in billions."""
        return self.flops / 1e9

    def table(self, *, per_layer: bool = False) -> Table:
        """Return a rich table of the totals, or of every layer; raises MissingExtraError without rich."""
        from .render import profile_table

        return profile_table(self, per_layer=per_layer)

    def to_dict(self, *, per_layer: bool = True) -> dict[str, Any]:
        """Return everything as JSON has it, without the rows unless ``per_layer``."""
        values = asdict(self)
        if not per_layer:
            del values["rows"]
        return values

    def to_json(self, *, per_layer: bool = True) -> str:
        """Return everything as JSON, without the rows unless ``per_layer``.

        >>> import json
        >>> layer = profile(nn.Linear(4, 5), input_size=(2, 4), runs=0)
        >>> json.loads(layer.to_json())["flops"]
        80
        """
        return to_json(self.to_dict(per_layer=per_layer))


def profile(
    model: nn.Module,
    *inputs: Tensor,
    input_size: Sequence[int] | None = None,
    convention: str = "executed",
    activations: bool = True,
    runs: int = 5,
) -> Profile:
    """Measure what a model costs: parameters, FLOPs, activation memory and milliseconds, layer by layer.

    The conventions of FLOPs (2 x multiply-adds):

    - ``"executed"``: every product that is really performed.
    - ``"gather"``: the published algorithm in full. Every token, padded ones too, is a query of the search; neighbours
      are gathered, then multiplied.
    - ``"published"``: the same as the published profiler prints it, which passes over ``conv1d`` (the ConvNN's
      aggregation) and ``conv2d(padding="same")`` (a hybrid's convolution), and adds one for every element of an
      elementwise addition or product.

    Activation memory is the bytes of the storages that autograd keeps for the backward pass of a forward pass in
    training mode: each once, parameters and buffers left out. Parameters on the meta device do for all but the times.
    The model is left as it was.

    Args:
        model: any module: a network, converted or not, or one layer.
        *inputs: the tensors that it takes.
        input_size: instead of inputs, the shape of one, batch included: random numbers of the model's dtype and device.
        convention: of the FLOPs.
        activations: whether to measure activation memory (one forward pass that keeps everything).
        runs: forward passes to time; 0 times nothing.

    Raises:
        ConvNNError: there is no input, or an argument does not fit.

    Example:
        >>> import convnn
        >>> cost = profile(convnn.ConvNN2d(4, 8, k=3), input_size=(1, 4, 6, 6), convention="gather", runs=0)
        >>> cost.flops, dict(cost.operators)
        (17280, {'bmm': 10368, 'conv1d': 6912})
        >>> cost.parameters, cost.activation_bytes
        (104, 1440)
    """
    check_convention(convention)
    checks.whole("runs", runs, at_least=0)
    tensors = _inputs(model, inputs, input_size)
    record = record_products(model, tensors)
    notes: list[str] = []
    saved = _activations(model, tensors, record, notes) if activations else None
    times = None
    if runs and tensors[0].is_meta:
        notes.append("milliseconds: not measured, nothing runs on the meta device")
    elif runs:
        times = forward_times(model, tensors, record.plan, runs=runs)
    rows = _rows(record, convention, saved, times)
    operators: Counter[str] = Counter()
    for row in rows:
        operators.update(row.operators)
    return Profile(
        model=type(model).__name__,
        convention=convention,
        inputs=tuple(tuple(tensor.shape) for tensor in tensors),
        device=str(tensors[0].device),
        parameters=count_parameters(model),
        flops=operators.total(),
        operators=dict(operators),
        activation_bytes=None if saved is None else sum(saved),
        milliseconds=None if times is None else times.median,
        times=() if times is None else tuple(times.whole),
        rows=rows,
        notes=tuple(notes),
    )


def _inputs(model: nn.Module, inputs: tuple[Tensor, ...], size: Sequence[int] | None) -> tuple[Tensor, ...]:
    if bool(inputs) == (size is not None):
        got = "both" if inputs else "neither"
        raise invalid("inputs", "tensors, or input_size", got, "e.g. profile(model, input_size=(1, 3, 224, 224))")
    if size is None:
        return inputs
    shape = tuple(checks.whole("input_size", length) for length in size)
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        return (_random(shape),)
    return (_random(shape).to(device=first.device, dtype=first.dtype),)


def _random(shape: tuple[int, ...]) -> Tensor:
    """Return random numbers, always the same: among zeros a search would meet nothing but ties."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _activations(model: nn.Module, inputs: tuple[Tensor, ...], record: Record, notes: list[str]) -> list[int] | None:
    try:
        return activation_bytes(model, inputs, record.plan)
    except ValueError as error:
        if _TOO_SMALL not in str(error):
            raise
        notes.append("activation memory: not measured, batch norm cannot train on this batch; use a larger one")
        return None


def _rows(record: Record, convention: str, saved: list[int] | None, times: Times | None) -> tuple[ProfileRow, ...]:
    return tuple(
        ProfileRow(
            name=unit.name,
            kind=type(unit.layer).__name__,
            calls=record.counts[number],
            parameters=unit.parameters,
            flops=cost.total(),
            operators=dict(cost),
            activation_bytes=None if saved is None else saved[number],
            milliseconds=None if times is None else times.units[number],
        )
        for number, (unit, cost) in enumerate(zip(record.plan.units, record.costs(convention), strict=True))
    )
