"""Preset the layers of any model for ConvNN or hybrid layers, and report what was swapped."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from . import _checks as checks
from ._options import check_names
from ._swap import attention_kind, conv_kind, is_convnn_layer, options_for, replacement, why_kept
from ._utils.modules import put
from .errors import ConversionWarning, ConvNNError, invalid
from .nn.heads import HeadsAttention
from .nn.layer import NeighborLayer

To = Literal["convnn", "hybrid"]
Types = type[nn.Module] | tuple[type[nn.Module], ...] | None
NamedLayer = tuple[tuple[str, ...], nn.Module]  # a layer and all its names


@dataclass(frozen=True)
class ConversionRow:
    """One layer of a conversion: its names, its original, its replacement, or the reason why it was kept."""

    names: tuple[str, ...]
    original: str
    replacement: str | None
    parameters_before: int
    parameters_after: int
    reason: str = ""


@dataclass
class ConversionReport:
    """The result of ``convert``, layer by layer; print it for a table.

    Attributes:
        replaced: a row per layer that was replaced.
        kept: a row per convolution or attention that stayed, with the reason.
    """

    replaced: list[ConversionRow] = field(default_factory=list)
    kept: list[ConversionRow] = field(default_factory=list)

    def __str__(self) -> str:
        head = ("layer", "was", "is", "parameters")
        rows = [(_names(r), r.original, r.replacement or "", f"{r.parameters_before} -> {r.parameters_after}")
                for r in self.replaced]  # fmt: skip
        rows += [(_names(r), r.original, f"kept: {r.reason}", str(r.parameters_before)) for r in self.kept]
        widths = [max(len(row[column]) for row in [head, *rows]) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in [head, *rows]]  # fmt: skip
        before = sum(r.parameters_before for r in self.replaced)
        after = sum(r.parameters_after for r in self.replaced)
        lines.append(f"{len(self.replaced)} replaced ({before} -> {after} parameters), {len(self.kept)} kept")
        return "\n".join(lines)


def _names(row: ConversionRow) -> str:
    return " = ".join(row.names)


def convert(
    model: nn.Module,
    to: To = "hybrid",
    *,
    types: Types = None,
    pattern: str | tuple[str, ...] | None = None,
    where: Callable[[str, nn.Module], bool] | None = None,
    init: Literal["random", "from_original"] = "random",
    inplace: bool = False,
    **options: object,
) -> nn.Module:
    """Replace convolutions and attention in a model by ConvNN or hybrid layers.

    The default is that of the published models: every convolution with a kernel above 1 and stride 1, and every
    attention. ``types``, ``pattern`` and ``where`` select other layers; a layer must satisfy all that are given. Shared
    layers stay shared. A selected layer that cannot be replaced is kept, with a ``ConversionWarning`` and an entry in
    ``conversion_report(model)``.

    Args:
        model: any module; timm's and torchvision's models, or one layer.
        to: ``"convnn"`` (ConvNN layers, ConvNN attention) or ``"hybrid"`` (each beside what it replaces).
        types: layer types, e.g. ``nn.Conv2d``.
        pattern: glob patterns of layer names, e.g. ``"layer3.*.conv2"``.
        where: a predicate of name and layer.
        init: ``"random"``, or ``"from_original"``: attention keeps its projections, a ConvNN takes the kernel's weights
            slot by slot (``similarity="spatial"`` is then the same function), and the hybrid's convolution takes its
            slice of the kernel, with the 1x1 mix starting as the identity. Copied weights stay frozen if they were;
            new ones are trainable.
        inplace: change ``model`` itself instead of a copy.
        **options: of the new layers: ``k``, ``branch_ratio``, ``similarity``, ``candidates``, ``aggregation``, ...
            ``similarity="spatial"`` without ``k`` and ``candidates`` takes those of each kernel. ``kernel_size`` gives
            a hybrid's convolution another kernel; ``convnn_bias`` and ``candidate_padding`` are the ConvNN's own.

    Returns:
        The converted model; ``conversion_report`` lists what was replaced.

    Raises:
        ConvNNError: no layer was selected, none of them could be replaced, or an option does not exist.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        >>> hybrid = convert(net, "hybrid", branch_ratio=0.5)
        >>> print(conversion_report(hybrid))
        layer  was                    is                                         parameters
        0      Conv2d 3 -> 8, 3x3     HybridConvNN2d k=9, cosine, all, 0.5 of 8  224 -> 296
        2      Conv2d 8 -> 8, 3x3     HybridConvNN2d k=9, cosine, all, 0.5 of 8  584 -> 656
        2 replaced (808 -> 952 parameters), 0 kept
    """
    checks.name("to", to, ("convnn", "hybrid"))
    checks.name("init", init, ("random", "from_original"))
    _check_choice(model, types, pattern, where)
    if not inplace:
        model = copy.deepcopy(model)
    named = _named_layers(model, types)
    selected, report = _divide(named, types, pattern, where)
    check_names(options, frozenset().union(*(options_for(layer, to) for _, layer in selected)))
    earlier = getattr(model, "_convnn_report", None) or ConversionReport()
    tied = _tied_parameters(model)
    errors: list[ConvNNError] = []
    for names, layer in selected:
        try:
            _check_not_tied(layer, tied)
            new = replacement(layer, to, init=init, options=options)
        except ConvNNError as error:
            errors.append(error)
            report.kept.append(_row(names, layer, None, str(error)))
            continue
        _assign_eval_seed(new, len(earlier.replaced) + len(report.replaced))
        model = _put(model, names, new)
        report.replaced.append(_row(names, layer, new))
    if errors and not report.replaced:
        raise errors[0]
    if errors:
        warnings.warn(_warning(report, len(errors)), ConversionWarning, stacklevel=2)
    _keep_padding(model)
    model.__dict__.pop("convnn_config", None)  # of convnn.models: it describes the model before the conversion
    model._convnn_report = ConversionReport(earlier.replaced + report.replaced, report.kept)  # type: ignore[assignment]
    return model


def conversion_report(model: nn.Module) -> ConversionReport:
    """Return what ``convert`` replaced in a model and what it kept; raises if it was never converted."""
    report = getattr(model, "_convnn_report", None)
    if not isinstance(report, ConversionReport):
        raise invalid("model", "one that convnn.convert returned", type(model).__name__, "convert it first")
    return report


def _check_choice(model: object, types: object, pattern: object, where: object) -> None:
    if not isinstance(model, nn.Module):
        raise invalid("model", "an nn.Module", type(model).__name__, "pass the model itself")
    kinds = types if isinstance(types, tuple) else (types,)
    if types is not None and not all(isinstance(kind, type) for kind in kinds):
        raise invalid("types", "a layer class, or a tuple of them", repr(types), "e.g. types=nn.Conv2d")
    names = pattern if isinstance(pattern, tuple) else (pattern,)
    if pattern is not None and not all(isinstance(name, str) for name in names):
        raise invalid("pattern", "a glob pattern, or a tuple of them", repr(pattern), 'e.g. pattern="layer3.*"')
    if where is not None and not callable(where):
        raise invalid("where", "a function of name and layer", repr(where), "e.g. where=lambda name, layer: True")


def _named_layers(model: nn.Module, types: Types) -> list[NamedLayer]:
    """Return every convolution, attention and layer of ``types``, with all its names; none inside convnn's layers."""
    names: dict[int, list[str]] = {}
    layers: dict[int, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, layer in model.named_modules(remove_duplicate=False):
        if name.startswith(inside):
            continue
        if is_convnn_layer(layer):
            inside = (*inside, f"{name}.")
        elif conv_kind(layer) or attention_kind(layer) or (types is not None and isinstance(layer, types)):
            names.setdefault(id(layer), []).append(name)
            layers[id(layer)] = layer
    return [(tuple(names[key]), layer) for key, layer in layers.items()]


def _divide(
    named: list[NamedLayer],
    types: Types,
    pattern: str | tuple[str, ...] | None,
    where: Callable[[str, nn.Module], bool] | None,
) -> tuple[list[NamedLayer], ConversionReport]:
    """Divide the layers into those to replace and those to keep, with the reason."""
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    selected, report = [], ConversionReport()
    for names, layer in named:
        reason = ""
        if types is None and patterns is None and where is None:
            reason = why_kept(layer)
        elif types is not None and not isinstance(layer, types):
            reason = "not of the types asked for"
        elif patterns is not None and not any(fnmatch.fnmatchcase(n, p) for n in names for p in patterns):
            reason = "its name does not match the pattern"
        elif where is not None and not any(where(name, layer) for name in names):
            reason = "where() said no"
        if reason:
            report.kept.append(_row(names, layer, None, reason))
        else:
            selected.append((names, layer))
    if not selected:
        seen = ", ".join(names[0] or "(the model itself)" for names, _ in named[:5])
        seen = seen or "none (of their own; convnn's stay)"
        selection = {"pattern": pattern, "types": types, "where": where}
        argument = next((name for name, value in selection.items() if value is not None), "model")
        asked = selection.get(argument, "none with a kernel above 1 and stride 1, and no attention")
        expected = f"a choice of convolutions and attention layers, of which there are: {seen}"
        raise invalid(argument, expected, repr(asked), "choose with types, pattern or where")
    return selected, report


def _tied_parameters(model: nn.Module) -> frozenset[int]:
    """Return the ids of the parameters that several layers share."""
    owners = Counter(id(p) for layer in model.modules() for p in layer._parameters.values() if p is not None)
    return frozenset(parameter for parameter, count in owners.items() if count > 1)


def _check_not_tied(layer: nn.Module, tied: frozenset[int]) -> None:
    if any(id(parameter) in tied for parameter in layer.parameters()):
        fix = "untie it first, or leave the layer out"
        raise invalid("layer", "one with parameters of its own", f"{type(layer).__name__} with a tied one", fix)


def _keep_padding(model: nn.Module) -> None:
    """Stop torch's encoders from packing padded batches into nested tensors, which only their own attention reads."""
    for part in model.modules():
        if isinstance(part, nn.TransformerEncoder) and any(isinstance(p, HeadsAttention) for p in part.modules()):
            part.use_nested_tensor = False


def _assign_eval_seed(new: nn.Module, position: int) -> None:
    """Assign a seed for the random candidates of evaluations, another one to every replaced layer."""
    for part in new.modules():
        if isinstance(part, NeighborLayer):
            part.eval_seed = position


def _put(model: nn.Module, names: tuple[str, ...], new: nn.Module) -> nn.Module:
    """Replace a layer under all its names; return the model, which is the layer itself where the name is empty."""
    if "" in names:
        return new
    for name in names:
        put(model, name, new)
    return model


def _row(names: tuple[str, ...], layer: nn.Module, new: nn.Module | None, reason: str = "") -> ConversionRow:
    before = _size(layer)
    after = before if new is None else _size(new)
    return ConversionRow(names, describe(layer), None if new is None else describe(new), before, after, reason)


def _size(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters() if not isinstance(p, nn.UninitializedParameter))


def describe(layer: nn.Module) -> str:
    """Describe a layer in a few words."""
    name = type(layer).__name__
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        stride = "" if set(layer.stride) == {1} else f", stride {'x'.join(map(str, layer.stride))}"
        return f"{name} {layer.in_channels} -> {layer.out_channels}, {'x'.join(map(str, layer.kernel_size))}{stride}"
    part = next((part for part in layer.modules() if isinstance(part, NeighborLayer)), None)
    if part is None:
        return name
    width = getattr(layer, "out_channels", getattr(layer, "dim", ""))
    ratio = f", {layer.branch_ratio} of {width}" if part is not layer else ""
    among = part.candidates
    candidates = f"{among.numel()} positions" if isinstance(among, Tensor) else among
    return f"{name} k={part.k}, {part.similarity}, {candidates}{ratio}"


def _warning(report: ConversionReport, count: int) -> str:
    failed = report.kept[-count:]
    listed = "; ".join(f"{_names(row)} ({row.reason})" for row in failed[:3])
    return f"{count} of the chosen layers could not be replaced: {listed}{'; ...' if count > 3 else ''}"
