"""``profile``: the costs of a model, in whole and row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .. import _checks as checks
from ..errors import invalid
from .counting import Record, check_convention, count_parameters, record_products
from .memory import activation_bytes
from .results import Profile, ProfileRow
from .timing import Times, forward_times

_TOO_SMALL = "more than 1 value per channel"  # in the error of torch's batch norm for a batch that it cannot train on


def profile(
    model: nn.Module,
    *inputs: Tensor,
    input_size: Sequence[int] | None = None,
    convention: str = "executed",
    activations: bool = True,
    runs: int = 5,
) -> Profile:
    """Measure the costs of a model: parameters, FLOPs, activation memory and milliseconds, layer by layer.

    The conventions of FLOPs (2 x multiply-adds):

    - ``"executed"``: every product that is really performed.
    - ``"gather"``: the published algorithm in full. Every token, padded ones too, is a query of the search; neighbours
      are gathered, then multiplied.
    - ``"published"``: the same as the published profiler prints it, which skips ``conv1d`` (the ConvNN's
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
    """Return random numbers, always the same: a search among zeros would have only ties."""
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
