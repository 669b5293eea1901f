"""The layer that is running: every module belongs to one unit, a row of the tables, and hooks follow them."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..nn.hybrid import HybridConvNN1d, HybridConvNN2d, HybridConvNN3d
from ..nn.layer import NeighborLayer

# The projections inside a ConvNN layer: part of its published formula, like its search and its aggregation.
_PROJECTIONS = ("qkv", "query_projection", "key_projection", "value_projection", "pointwise")
_HYBRIDS = (HybridConvNN1d, HybridConvNN2d, HybridConvNN3d)

Role = Literal["layer", "branch", "other"]


@dataclass
class Unit:
    """A row of the tables: a leaf, a ConvNN or attention layer with all inside it, or a container's own work."""

    name: str
    layer: nn.Module
    parameters: int = 0


class ModuleRow(NamedTuple):
    """The unit of a module, and its role: a ConvNN ``"layer"``, a hybrid's ``"branch"``, or ``"other"``."""

    unit: int
    role: Role


@dataclass
class Plan:
    """The units of a model in the order of its modules, and every module's row."""

    units: list[Unit] = field(default_factory=list)
    rows: dict[nn.Module, ModuleRow] = field(default_factory=dict)


def plan_of(model: nn.Module) -> Plan:
    """Divide a model into units; parameters that several of them share belong to the first."""
    plan = Plan()
    _visit(plan, model, "", "other")
    owned: set[int] = set()
    for unit in plan.units:
        whole = _is_whole(unit.layer)
        for parameter in unit.layer.parameters(recurse=whole):
            if id(parameter) not in owned:
                owned.add(id(parameter))
                unit.parameters += parameter.numel()
    return plan


def _is_whole(module: nn.Module) -> bool:
    """Return True if a module is one unit with all that it holds."""
    return isinstance(module, NeighborLayer | nn.MultiheadAttention)


def _visit(plan: Plan, module: nn.Module, name: str, role: Role) -> None:
    if module in plan.rows:
        return
    number = len(plan.units)
    plan.units.append(Unit(name, module))
    plan.rows[module] = ModuleRow(number, "layer" if isinstance(module, NeighborLayer) else role)
    if _is_whole(module):
        for inner_name, inner in module.named_modules():
            is_layer = isinstance(module, NeighborLayer) and inner_name.split(".")[0] in ("", *_PROJECTIONS)
            plan.rows[inner] = ModuleRow(number, "layer" if is_layer else "other")
        return
    for child_name, child in module.named_children():
        branch = isinstance(module, _HYBRIDS) and child_name == "conv"
        _visit(plan, child, f"{name}.{child_name}" if name else child_name, "branch" if branch else "other")


class Call(NamedTuple):
    """One call of a ConvNN layer: its unit, the layer, and the arguments of its ``forward`` by name."""

    unit: int
    layer: NeighborLayer
    arguments: dict[str, Any]


class Tracker:
    """Tracks the modules of a running model while the context lasts: ``row`` is that of the module now running.

    ``counts`` has how often every unit was called, ``calls`` the calls of ConvNN layers. ``entered`` and ``left`` are
    called with a row, as a module starts and ends.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        entered: Callable[[ModuleRow], None] | None = None,
        left: Callable[[ModuleRow], None] | None = None,
    ) -> None:
        self.plan, self.calls, self.counts = plan, list[Call](), Counter[int]()
        self._entered, self._left = entered, left
        self._stack: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []

    @property
    def row(self) -> ModuleRow:
        """The row of the module that is running; outside of all, the model's own."""
        return self.plan.rows[self._stack[-1]] if self._stack else ModuleRow(0, "other")

    def __enter__(self) -> Self:
        for module in self.plan.rows:
            self._handles += [
                module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        row = self.plan.rows[module]
        self._stack.append(module)
        if self.plan.units[row.unit].layer is module:
            self.counts[row.unit] += 1
        if isinstance(module, NeighborLayer):
            arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
            self.calls.append(Call(row.unit, module, arguments))
        if self._entered is not None:
            self._entered(row)

    def _leave(self, module: nn.Module, *_: Any) -> None:
        # A hook that failed may have kept a module from leaving.
        while self._stack and self._stack.pop() is not module:
            pass
        if self._left is not None:
            self._left(self.plan.rows[module])
