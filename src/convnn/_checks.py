"""Checks of arguments: shapes, dtypes, devices, names, and k against the candidates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ._precision import autocast_is_on
from ._tracing import dense, readable
from .errors import ConvNNError, invalid, shown, unknown_name
from .maps import QueryGrid
from .types import SIMILARITIES, Blend, Gather, Grid, Neighbors, Random, Window
from .types import whole as whole  # noqa: PLC0414  # mypy exports only names that are imported so


def tokens(argument: str, value: object) -> None:
    """Raise ConvNNError unless a value is a floating-point ``(B, N, C)`` tensor."""
    if not isinstance(value, Tensor):
        raise invalid(argument, "a tensor (batch, tokens, channels)", type(value).__name__, "pass a torch.Tensor")
    dense(argument, value)
    if value.dim() == 3 and value.shape[2] == 0:
        raise invalid(argument, "at least one channel", f"shape {tuple(value.shape)}", "give tokens some features")
    if value.dim() != 3:
        fix = "turn a map (B, C, H, W) into tokens with x.flatten(2).transpose(1, 2)"
        raise invalid(argument, "3 axes (batch, tokens, channels)", f"shape {tuple(value.shape)}", fix)
    if not value.is_floating_point():
        raise invalid(argument, "a real floating-point dtype", value.dtype, "convert it with .float()")


def same(first: tuple[str, Tensor], second: tuple[str, Tensor], axes: dict[int, str]) -> None:
    """Raise ConvNNError if two tensors differ in a named axis, dtype or device."""
    (name, a), (other, b) = first, second
    for axis, meaning in axes.items():
        if a.shape[axis] != b.shape[axis]:
            fix = f"give both the same number of {meaning}"
            raise invalid(other, f"{a.shape[axis]} {meaning} as in {name}", b.shape[axis], fix)
    if a.dtype != b.dtype and not autocast_is_on(a.device):
        raise invalid(other, f"{a.dtype} as {name}", b.dtype, f"convert one, e.g. {other}.to({name}.dtype)")
    if a.device != b.device:
        raise invalid(other, f"device {a.device} as {name}", b.device, f"move one, e.g. {other}.to({name}.device)")


def number(argument: str, value: object, *, above: float | None = None) -> float:
    """Return a finite real number (above ``above`` if given); raises ConvNNError for anything else."""
    # Not math.isfinite: a compiled graph cannot call it with symbolic numbers.
    real = isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    if not real or (above is not None and value <= above):  # type: ignore[operator]  # real was tested first
        expected = "a finite number" + ("" if above is None else f" above {above:g}")
        raise invalid(argument, expected, shown(value), "give such a number")
    return float(value)  # type: ignore[arg-type]


def flag(argument: str, value: object) -> bool:
    """Return True or False; raises ConvNNError for anything else, numbers included."""
    if not isinstance(value, bool):
        raise invalid(argument, "True or False", shown(value), "pass one of them")
    return value


def probability(argument: str, value: object) -> float:
    """Return a probability in [0, 1); raises ConvNNError for anything else."""
    if not 0 <= number(argument, value) < 1:
        raise invalid(argument, "a probability in [0, 1)", value, "use 0 for none")
    return number(argument, value)


def scale_of_dot(scale: float | None, similarity: object) -> float | None:
    """Return the scale; raises ConvNNError if the similarity would ignore it."""
    if scale is None:
        return None
    value = number("scale", scale)
    if similarity != "dot":
        raise invalid("scale", "None unless similarity is 'dot'", value, "leave it out, or use similarity='dot'")
    return value


def temperature_of_softmax(temperature: float, weighting: str) -> float:
    """Return the temperature; raises ConvNNError if the weighting would ignore it."""
    value = number("temperature", temperature, above=0)
    if value != 1 and weighting != "softmax":
        expected = "1 unless weighting is 'softmax'"
        raise invalid("temperature", expected, value, "leave it out, or use weighting='softmax'")
    return value


def name(argument: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ConvNNError for a name that is not in ``allowed``, with the closest one."""
    names = tuple(allowed)
    if not isinstance(value, str) or value not in names:
        raise unknown_name(argument, value, names)


def similarity(value: object) -> None:
    """Raise ConvNNError unless a value is a similarity's name or a ``Blend``."""
    if isinstance(value, Blend):
        return
    if isinstance(value, str) and value == "blend":
        raise invalid("similarity", "a Blend", repr(value), "write similarity=convnn.Blend(0.5)")
    if not isinstance(value, str) or value not in SIMILARITIES:
        raise unknown_name("similarity", value, SIMILARITIES, also=" or a convnn.Blend(lam)")


def candidates(value: object) -> None:
    """Raise ConvNNError unless a value is ``"all"``, a candidate set or a 1-d integer tensor."""
    if isinstance(value, Random | Grid | Window):
        return
    if isinstance(value, Tensor):
        if value.dim() != 1 or value.is_floating_point() or value.dtype == torch.bool or value.numel() == 0:
            got = f"shape {tuple(value.shape)}, {value.dtype}"
            fix = "pass the positions of the candidates, shape (r,), dtype int64"
            raise invalid("candidates", "a 1-d, non-empty integer tensor of positions", got, fix)
        return
    specs = {"random": "convnn.Random(32)", "grid": "convnn.Grid(5)", "window": "convnn.Window(3)"}
    if isinstance(value, str) and value in specs:
        raise invalid("candidates", "a candidate set", repr(value), f"say how many: candidates={specs[value]}")
    if not isinstance(value, str) or value != "all":
        also = ", a convnn.Random(r), Grid(g), Window(size), or a 1-d tensor of positions"
        raise unknown_name("candidates", value, ("all",), also=also)


def positions(argument: str, value: Tensor, count: int) -> None:
    """Raise ConvNNError for flat positions outside ``[0, count)``, and for a candidate that is listed twice."""
    if value.numel() == 0 or not readable(value):
        return
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= count:
        fix = "count tokens of the (padded) keys from 0"
        raise invalid(argument, f"positions in [0, {count})", f"{low} to {high}", fix)
    if argument == "candidates" and value.unique().numel() != value.numel():
        raise invalid(argument, "distinct positions", "a position given twice", "pass candidates.unique()")


def grid(value: object, keys: int) -> tuple[int, ...]:
    """Return the keys' grid; a plain sequence is a 1-d grid."""
    if value is None:
        return (keys,)
    if not isinstance(value, tuple | list | torch.Size) or not value:
        raise invalid("grid", "a tuple of sizes, one per axis", repr(value), "e.g. grid=(height, width)")
    sizes = tuple(whole("grid", size) for size in value)
    if math.prod(sizes) != keys:
        fix = "give the sizes of the map that the keys were flattened from (padding included)"
        raise invalid("grid", f"sizes whose product is {keys}, the number of keys", sizes, fix)
    return sizes


def query_index(value: object, queries: int, keys_grid: tuple[int, ...], *, device: torch.device) -> None:
    """Raise ConvNNError unless there is one position per query, inside the grid."""
    if isinstance(value, QueryGrid):
        _query_grid(value, queries, keys_grid)
        return
    if not isinstance(value, Tensor) or value.dim() != 1 or value.is_floating_point() or value.dtype == torch.bool:
        got = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else repr(value)
        fix = "pass the queries' positions among the keys"
        raise invalid("query_index", "a 1-d integer tensor or a QueryGrid", got, fix)
    if value.shape[0] != queries:
        expected = f"{queries} positions, one per query"
        raise invalid("query_index", expected, value.shape[0], "give one position per query")
    if value.device != device:
        raise invalid("query_index", f"device {device} as the keys", value.device, "move it there")
    positions("query_index", value, math.prod(keys_grid))


def _query_grid(value: QueryGrid, queries: int, keys_grid: tuple[int, ...]) -> None:
    axes = (value.offset, value.shape, value.stride)
    if not all(isinstance(part, tuple) and len(part) == len(keys_grid) for part in axes):
        fix = "give offset, shape and stride as tuples with one number per axis"
        raise invalid("query_index", f"a query grid of {len(keys_grid)} axes", value, fix)
    if math.prod(value.shape) != queries:
        fix = "give the shape of the queries' map"
        raise invalid("query_index", f"a query grid of {queries} queries", value.shape, fix)
    for offset, count, stride, size in zip(*axes, keys_grid, strict=True):
        if offset < 0 or stride < 1 or offset + (count - 1) * stride >= size:
            expected = f"a query grid inside the grid {keys_grid}"
            raise invalid("query_index", expected, value, "lower offset, shape or stride")


def key_padding_mask(value: object, tokens: Tensor) -> None:
    """Raise ConvNNError unless a mask is boolean, ``(B, M)``, and on the tokens' device."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        fix = "make it a boolean tensor, e.g. mask.bool()"
        raise invalid("key_padding_mask", "a boolean tensor (True: not a neighbour)", got, fix)
    if value.shape != tokens.shape[:2]:
        expected = f"shape {tuple(tokens.shape[:2])} (batch, keys)"
        raise invalid("key_padding_mask", expected, f"shape {tuple(value.shape)}", "give one entry per key")
    if value.device != tokens.device:
        raise invalid("key_padding_mask", f"device {tokens.device}", value.device, "move it to the keys' device")


def some_key_left(mask: Tensor) -> None:
    """Raise ConvNNError if a mask leaves a sample without keys; nothing is checked while a graph is traced."""
    if mask.numel() == 0 or not readable(mask):
        return
    if bool(mask.all(dim=1).any()):
        expected = "at least one key left in every sample"
        raise invalid("key_padding_mask", expected, "a sample whose keys are all masked", "leave such samples out")


def too_few(k: int, available: int, *, what: str, fix: str) -> ConvNNError:
    """Build the error for a k above the number of candidates."""
    return invalid("k", f"at most {available} ({what})", k, fix)


def gather(problem: Gather, neighbors_k: int) -> None:
    """Raise ConvNNError if a weight or a bias does not fit the values and the k neighbours."""
    channels, weight = problem.value.shape[2], problem.weight
    if weight is None:
        if problem.groups != 1:
            raise invalid("groups", "1 where there is no weight", problem.groups, "give a weight, or leave groups out")
    else:
        _slot_weight(weight, problem, neighbors_k)
        channels = weight.shape[0]
    if problem.bias is not None:
        if not isinstance(problem.bias, Tensor):
            got = type(problem.bias).__name__
            raise invalid("bias", f"a tensor of shape ({channels},)", got, "pass a torch.Tensor")
        if problem.bias.shape != (channels,):
            got = f"shape {tuple(problem.bias.shape)}"
            raise invalid("bias", f"shape ({channels},), one per output channel", got, "give one number per channel")
        same(("value", problem.value), ("bias", problem.bias), {})


def _slot_weight(weight: object, problem: Gather, neighbors_k: int) -> None:
    if not isinstance(weight, Tensor) or weight.dim() != 3:
        got = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise invalid("weight", "shape (C_out, C_in/groups, k)", got, "flatten a convolution's with weight.flatten(2)")
    channels, groups = problem.value.shape[2], problem.groups
    if channels % groups or weight.shape[0] % groups:
        expected = f"a divisor of C_in = {channels} and C_out = {weight.shape[0]}"
        raise invalid("groups", expected, groups, "choose such a number")
    if weight.shape[1] != channels // groups:
        fix = "match the weight's second axis to the values' channels"
        raise invalid("weight", f"C_in/groups = {channels // groups} in its second axis", weight.shape[1], fix)
    if weight.shape[2] != neighbors_k:
        fix = "give one slot per neighbour"
        raise invalid("weight", f"k = {neighbors_k} slots in its last axis", weight.shape[2], fix)
    same(("value", problem.value), ("weight", weight), {})


def neighbors(value: object, values: Tensor) -> None:
    """Raise ConvNNError if neighbours do not fit the values."""
    if not isinstance(value, Neighbors):
        fix = "pass what knn_search returned, or convnn.Neighbors(similarity, index)"
        raise invalid("neighbors", "a convnn.Neighbors", type(value).__name__, fix)
    for part in ("similarity", "index"):
        tensor = getattr(value, part)
        if not isinstance(tensor, Tensor):
            raise invalid(f"neighbors.{part}", "a tensor", type(tensor).__name__, "pass what knn_search returned")
        if tensor.device != values.device:
            fix = "move it to the values' device"
            raise invalid(f"neighbors.{part}", f"device {values.device} as value", tensor.device, fix)
    if value.index.dim() != 3 or value.index.dtype != torch.int64:
        got = f"shape {tuple(value.index.shape)}, {value.index.dtype}"
        raise invalid("neighbors.index", "int64 of shape (B, N, k)", got, "pass the index of knn_search")
    if value.similarity.shape != value.index.shape:
        got = f"shape {tuple(value.similarity.shape)}"
        raise invalid("neighbors.similarity", f"the shape of the index, {tuple(value.index.shape)}", got, "match them")
    if value.index.shape[0] != values.shape[0]:
        expected = f"a batch of {values.shape[0]} as value"
        raise invalid("neighbors", expected, value.index.shape[0], "search and gather the same batch")
    positions("neighbors.index", value.index, values.shape[1])
