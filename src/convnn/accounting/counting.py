"""Counting: one forward pass is recorded product by product, and every convention counts from that record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from .._utils.modules import evaluating
from ..errors import invalid, unknown_name
from .algorithm import layer_cost
from .modes import plain_attention
from .tracking import Call, ModuleRow, Plan, Tracker, plan_of

Convention = Literal["executed", "gather", "published"]
CONVENTIONS: tuple[Convention, ...] = ("executed", "gather", "published")
"""The executed products; the published algorithm in full; and the part of it that its profiler printed."""

Kind = Literal["product", "weights", "elementwise"]


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Count the numbers in a model's parameters, shared ones once; ``trainable`` leaves out the frozen ones.

    >>> count_parameters(nn.Conv2d(3, 8, 3))
    224
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_flops(model: nn.Module, *inputs: Tensor, convention: str = "executed") -> int:
    """Count the FLOPs (2 x multiply-adds) of one forward pass, by one of the ``CONVENTIONS``.

    ``"executed"`` counts every product that is really performed: convolutions, matrix products and attention, the
    similarity search of a ConvNN layer among them. Elementwise work is not counted. ``"gather"`` and ``"published"``
    count the published algorithm instead; see ``profile``. The model runs once on ``inputs`` without gradients, in eval
    mode, and is left as it was. Raises ConvNNError when there is no input and for another convention.

    >>> count_flops(nn.Linear(4, 5), torch.zeros(2, 4))
    80
    """
    check_convention(convention)
    record = record_products(model, inputs)
    return sum(cost.total() for cost in record.costs(convention))


def check_convention(convention: object) -> None:
    """Raise ConvNNError for a convention that is not in ``CONVENTIONS``."""
    if convention not in CONVENTIONS:
        raise unknown_name("convention", convention, CONVENTIONS)


class Event(NamedTuple):
    """The cost of one operator call.

    Attributes:
        row: of the module that called it.
        operator: its name, e.g. ``"mm"``, ``"conv2d"``, ``"nearest"``.
        flops: of its products, 2 x multiply-adds; or its elements, if it is elementwise.
        kind: ``"product"``; ``"weights"``, a sum of weighted rows written as an elementwise product; ``"elementwise"``.
        unseen: whether a profiler that reads padding as a number skips it (``padding="same"``).
    """

    row: ModuleRow
    operator: str
    flops: int
    kind: Kind
    unseen: bool


@dataclass(frozen=True)
class Record:
    """One forward pass: the units of the model, the costs of its operators, and the calls of its ConvNN layers.

    ``counts`` is how often each unit was called.
    """

    plan: Plan
    events: Sequence[Event]
    calls: Sequence[Call]
    counts: Counter[int]

    def costs(self, convention: str) -> list[Counter[str]]:
        """Return the FLOPs of every unit by operator, in one convention."""
        costs: list[Counter[str]] = [Counter() for _ in self.plan.units]
        for event in self.events:
            if _counts(event, convention):
                costs[event.row.unit][event.operator] += event.flops
        if convention != "executed":
            for call in self.calls:
                costs[call.unit].update(layer_cost(call.layer, call.arguments).counted(convention))
        return [+cost for cost in costs]


def _counts(event: Event, convention: str) -> bool:
    if convention == "executed":
        return event.kind == "product" or (event.kind == "weights" and event.row.role == "layer")
    if event.row.role == "layer" or event.kind == "weights":
        return False
    if convention == "gather":
        return event.kind == "product"
    return not (event.unseen or event.operator == "conv1d" or event.row.role == "branch")


def record_products(model: nn.Module, inputs: Sequence[Tensor]) -> Record:
    """Run a model once, in eval mode without gradients, and record its products."""
    if not inputs:
        raise invalid("inputs", "the tensors that the model takes", "none", "pass count_flops(model, x)")
    plan = plan_of(model)
    tracker = Tracker(plan)
    names = _Names()
    events: list[Event] = []

    def add(operator: str, flops: int, kind: Kind) -> None:
        if kind == "product":
            events.append(Event(tracker.row, names.operator or operator, flops, kind, names.unseen))
        elif names.operator is None:  # elementwise work inside a named operator belongs to it
            events.append(Event(tracker.row, operator, flops, kind, False))

    with torch.no_grad(), evaluating(model), plain_attention(), tracker, names, _counter(add):
        model(*inputs)
    return Record(plan, events, tracker.calls, tracker.counts)


Add = Callable[[str, int, Kind], None]


def _counter(add: Add) -> FlopCounterMode:
    """Return torch's counter, which knows the custom operators as well, reporting each count to ``add``."""
    known = FlopCounterMode(display=False).flop_registry
    mapping = {operator: _reporting(operator, formula, add) for operator, formula in known.items()}
    for name in ("mul", "add"):
        mapping[getattr(torch.ops.aten, name)] = _reporting_elements(name, add)
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _reporting(operator: Any, formula: Callable[..., int], add: Add) -> Callable[..., int]:
    name = getattr(operator, "__name__", str(operator))

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        flops = int(formula(*args, out_val=out_val, **kwargs))
        add(_name_of(name, args), flops, "product")
        return flops

    count._get_raw = True  # type: ignore[attr-defined]  # the counter's mark for formulas that take tensors, not shapes
    return count


def _name_of(operator: str, args: tuple[Any, ...]) -> str:
    """Return the name under which a profiler lists an operator."""
    if "attention" in operator or operator == "baddbmm":
        return "bmm"
    if "conv" in operator and "backward" not in operator and len(args) > 1 and isinstance(args[1], Tensor):
        transposed = "_transpose" if operator == "convolution" and args[6] else ""
        return f"conv{transposed}{args[1].dim() - 2}d"
    return operator


def _reporting_elements(name: str, add: Add) -> Callable[..., int]:
    def count(first: Any, second: Any = None, *_: Any, out_val: Any = None, **__: Any) -> int:
        if isinstance(first, Tensor):
            add(name, first.numel(), "elementwise")
        if name == "mul" and isinstance(first, Tensor) and isinstance(second, Tensor) and _weighs(first, second):
            add(name, 2 * out_val.numel(), "weights")
        return 0

    count._get_raw = True  # type: ignore[attr-defined]
    return count


def _weighs(first: Tensor, second: Tensor) -> bool:
    """Return True if a product of elements is one of rows and weights: broadcast, and not by one number a sample."""
    if first.shape == second.shape:
        return False
    return all(x.numel() > (x.shape[0] if x.dim() == max(first.dim(), second.dim()) else 1) for x in (first, second))


class _Names(TorchFunctionMode):
    """Records the function behind a product, which dispatch loses: linear layers, attention, ``padding="same"``."""

    def __init__(self) -> None:
        super().__init__()
        self.operator: str | None = None
        self.unseen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), *rest: Any) -> Any:
        kwargs: dict[str, Any] = (rest[0] if rest else None) or {}
        before = self.operator, self.unseen
        if func is F.linear:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            self.operator = "mm" if bias is None else "addmm"
        elif func is F.scaled_dot_product_attention:
            self.operator = "bmm"
        elif func in (F.conv1d, F.conv2d, F.conv3d):
            self.unseen = isinstance(args[4] if len(args) > 4 else kwargs.get("padding"), str)
        try:
            return func(*args, **kwargs)
        finally:
            self.operator, self.unseen = before
