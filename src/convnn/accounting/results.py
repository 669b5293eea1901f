"""The result of ``profile``: the costs of a model, in whole and row by row, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .._utils.files import to_json
from ..errors import missing_extra

if TYPE_CHECKING:
    from rich.table import Table

# A container is listed where it has a cost of its own; below this share of the time it has none.
_SHORT = 0.01


@dataclass(frozen=True)
class ProfileRow:
    """The costs of one layer, or of what a container of layers does itself.

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
    """The costs of a model for one input.

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
        return _layers(self) if per_layer else _totals(self)

    def to_dict(self, *, per_layer: bool = True) -> dict[str, Any]:
        """Return everything as JSON has it, without the rows unless ``per_layer``."""
        values = asdict(self)
        if not per_layer:
            del values["rows"]
        return values

    def to_json(self, *, per_layer: bool = True) -> str:
        """Return everything as JSON, without the rows unless ``per_layer``.

        >>> import json, torch
        >>> from convnn.accounting import profile
        >>> layer = profile(torch.nn.Linear(4, 5), input_size=(2, 4), runs=0)
        >>> json.loads(layer.to_json())["flops"]
        80
        """
        return to_json(self.to_dict(per_layer=per_layer))


def amount(number: float, unit: str = "") -> str:
    """Write a large number in four digits, by thousands.

    >>> amount(8178368512), amount(25557032), amount(80)
    ('8.178 G', '25.56 M', '80')
    """
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            scaled = number / size
            digits = 3 if scaled < 10 else 2 if scaled < 100 else 1
            return f"{scaled:.{digits}f} {prefix}{unit}"
    return f"{number:.0f} {unit}".strip()


def memory(number: float) -> str:
    """Write a number of bytes by 1024.

    >>> memory(1536), memory(12)
    ('1.5 KiB', '12 B')
    """
    for prefix, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.1f} {prefix}"
    return f"{number:.0f} B"


def _totals(profile: Profile) -> Table:
    table = empty_table(caption="\n".join(profile.notes) or None)
    table.add_column("")
    table.add_column("total", justify="right")
    table.add_row("model", profile.model)
    table.add_row("input", ", ".join(" x ".join(map(str, shape)) for shape in profile.inputs))
    table.add_row("device", profile.device)
    table.add_row("parameters", f"{profile.parameters:,}")
    table.add_row(f"FLOPs, {profile.convention}", f"{profile.flops:,}")
    for operator, flops in sorted(profile.operators.items(), key=lambda item: -item[1]):
        table.add_row(f"  {operator}", f"{flops:,}")
    if profile.activation_bytes is not None:
        table.add_row("activation memory", memory(profile.activation_bytes))
    if profile.milliseconds is not None:
        spread = f"{min(profile.times):.1f} to {max(profile.times):.1f}, n = {len(profile.times)}"
        table.add_row("forward pass", f"{profile.milliseconds:.1f} ms ({spread})")
    return table


def _layers(profile: Profile) -> Table:
    table = empty_table(caption="\n".join(profile.notes) or None)
    for name in ("layer", "kind"):
        table.add_column(f"\n{name}", overflow="fold")
    cells = _cells_of(profile)
    for name in cells:
        table.add_column(name, justify="right", no_wrap=True)
    for row in profile.rows:
        if _is_listed(row, profile):
            table.add_row(row.name or "(itself)", row.kind, *(write(row) for write in cells.values()))
    table.add_section()
    table.add_row("total", "", *(write(profile) for write in cells.values()))
    return table


def empty_table(*, title: str | None = None, caption: str | None = None) -> Table:
    """Return a rich table without columns, narrow enough for long names; raises MissingExtraError without rich."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
    except ImportError as error:
        raise missing_extra("rich", "cli") from error
    return Table(title=title, title_justify="left", caption=caption, caption_justify="left",
                 box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # fmt: skip


def _is_listed(row: ProfileRow, profile: Profile) -> bool:
    long = row.milliseconds is not None and row.milliseconds >= _SHORT * (profile.milliseconds or 0)
    return bool(row.parameters or row.flops or row.activation_bytes or long)


def _cells_of(profile: Profile) -> dict[str, Callable[[Profile | ProfileRow], str]]:
    """Return the columns of what was measured, and how each writes its number."""
    cells: dict[str, Callable[[Profile | ProfileRow], str]] = {
        "\nparameters": lambda costs: f"{costs.parameters:,}",
        f"{profile.convention}\nFLOPs": lambda costs: amount(costs.flops),
    }
    if profile.activation_bytes is not None:
        cells["\nactivations"] = lambda costs: memory(costs.activation_bytes or 0)
    if profile.milliseconds is not None:
        cells["\nms"] = lambda costs: f"{costs.milliseconds:.2f}"
    return cells
