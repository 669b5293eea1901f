"""The base of layers with neighbours, and the checks and initialisations that they share."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks as checks
from .._options import GatherOptions, SearchOptions
from .._precision import autocast_is_on
from .._tracing import Leaf, dense
from ..errors import invalid, shown
from ..knn import gather_with
from ..types import Candidates, Neighbors, Random, Similarity, Weighting
from .options import LayerOptions, Positions, kwargs_repr, options_repr

SEED_KEY = "evaluation_seed"
"""The key, in a state dict, of the seed of a layer's random candidates in evaluation."""
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_SEEDS = itertools.count()


def option(name: str, *, fixed: bool = False) -> Any:
    """Return a property for one of a layer's options; setting it checks all, or raises ConvNNError if ``fixed``."""

    def get(layer: NeighborLayer) -> Any:
        return getattr(layer.options, name)

    def put(layer: NeighborLayer, value: object) -> None:
        if fixed:
            current = repr(getattr(layer.options, name))
            raise invalid(name, f"{current}, which the layer was made with", value, "make another layer")
        changed: dict[str, Any] = {name: value}
        layer.options = dataclasses.replace(layer.options, **changed)

    return property(get, put, doc=f"The option ``{name}``.")


class NeighborLayer(Leaf):
    """A layer that finds neighbours: holds its options, each of which is an attribute too."""

    options: LayerOptions
    weight: nn.Parameter | None
    eval_seed: int
    k: int | None = option("k")
    similarity: Similarity = option("similarity")
    include_self: bool | None = option("include_self")
    weighting: Weighting = option("weighting")
    aggregation: str = option("aggregation", fixed=True)
    temperature: float = option("temperature")
    scale: float | None = option("scale")
    impl: str = option("impl")

    def __init__(self, options: LayerOptions) -> None:
        super().__init__()
        self.options = options
        # Random candidates of an evaluation: the same at every call and on every device, others in every layer.
        self.eval_seed = next(_SEEDS)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save the seed of the candidates of evaluations, beside the weights."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.candidates, Random):
            destination[prefix + SEED_KEY] = torch.tensor(self.eval_seed, device="cpu")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load the seed of the candidates of evaluations, if it was saved."""
        seed = state_dict.get(prefix + SEED_KEY)
        if isinstance(seed, Tensor) and not seed.is_meta:
            self.eval_seed = int(seed)
        weights = {name: value for name, value in state_dict.items() if name != prefix + SEED_KEY}
        super()._load_from_state_dict(weights, prefix, *args, **kwargs)

    @property
    def candidates(self) -> Candidates:
        """The candidate set; positions as a tensor ``(r,)`` on the CPU."""
        kept = self.options.candidates
        return torch.tensor(kept.numbers, dtype=torch.int64, device="cpu") if isinstance(kept, Positions) else kept

    @candidates.setter
    def candidates(self, value: Candidates) -> None:
        self.options = dataclasses.replace(self.options, candidates=value)

    def _search_options(self, **of_input: Any) -> SearchOptions:
        """Return the options of a search in this mode, with those of an input."""
        candidates = self.candidates
        if isinstance(candidates, Random) and not self.training:
            candidates = dataclasses.replace(candidates, seed=self.eval_seed, generator=None)
        return self.options.search(candidates, **of_input)

    def _search_impl(self) -> str:
        """Return the implementation for a search or an aggregation alone, which some implementations cannot run."""
        return self.impl if self.impl in ("reference", "dense", "tiled") else "auto"

    def _gather(
        self, options: GatherOptions, value: Tensor, neighbors: Neighbors, queries: int, bias: Tensor | None = None
    ) -> Tensor:
        """Aggregate neighbours ``(B, queries, k)`` of an earlier search, by this layer or another."""
        if isinstance(neighbors, Neighbors) and isinstance(neighbors.index, Tensor) and neighbors.index.dim() == 3:
            expected, got = (queries, self.k), tuple(neighbors.index.shape[1:])
            if got[0] != queries or self.k not in (None, got[1]):
                fix = "take them from neighbors() of a layer with this geometry and k"
                raise invalid("neighbors", f"(N, k) = {expected}, the layer's queries and slots", got, fix)
        return gather_with(options, value, neighbors, self.weight, bias, impl=self._search_impl())

    def _neighbor_repr(self, default: LayerOptions) -> str:
        """Write the shared options that are not the default ones, each behind a comma."""
        positions = isinstance(self.candidates, Tensor)
        names = ("similarity", "candidates", "weighting", "aggregation", "temperature", "scale", "impl")
        changed = {name: (getattr(self, name), getattr(default, name)) for name in names}
        if positions:
            del changed["candidates"]
        return kwargs_repr({"candidates": self.candidates} if positions else {}) + options_repr(changed)


def check_dtype(argument: str, dtype: object) -> None:
    """Raise ConvNNError for a dtype that no layer computes in; None means torch's default."""
    if dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        expected = "parameters of torch.float16, bfloat16, float32 or float64"
        raise invalid(argument, expected, shown(dtype), "convert it, or leave it as it is")


def per_axis(argument: str, value: object, dims: int, *, at_least: int) -> tuple[int, ...]:
    """Return one number per axis from one number or a sequence of ``dims`` numbers."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * dims
    if len(values) != dims:
        raise invalid(argument, f"one number, or {dims} (one per axis)", repr(value), f"give {dims} numbers")
    return tuple(checks.whole(argument, number, at_least=at_least) for number in values)


def collapse_repeated(values: tuple[int, ...]) -> int | tuple[int, ...]:
    """Write one number for equal numbers per axis, for reprs."""
    return values[0] if len(set(values)) == 1 else values


def aggregation_groups(aggregation: str, groups: int, *, value: int, out: int) -> int:
    """Return the groups that aggregate ``value`` channels to ``out``; raises ConvNNError if they do not divide."""
    if aggregation == "standard":
        if value % groups or out % groups:
            expected = f"a divisor of the values' {value} channels and of the {out} outputs"
            raise invalid("groups", expected, groups, "choose such a number")
        return groups
    if groups not in (1, value):
        expected = f"1 (aggregation={aggregation!r} fixes the groups)"
        raise invalid("groups", expected, groups, "leave groups out, or use aggregation='standard'")
    if aggregation == "depthwise" and out % value:
        fix = "change it, or use aggregation='depthwise_separable'"
        raise invalid("out_channels", f"a multiple of {value} (depthwise: every channel by itself)", out, fix)
    if aggregation == "sum" and out != value:
        raise invalid("out_channels", f"{value} (a sum keeps the channels)", out, "set out_channels to it")
    return value


def init_like_conv(weight: Tensor, bias: Tensor | None) -> None:
    """Initialise slot weights ``(C_out, C_in/groups, k)`` and bias as ``nn.Conv*d`` does."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    fan_in = weight.shape[1] * weight.shape[2]
    if bias is not None and fan_in:
        nn.init.uniform_(bias, -(fan_in**-0.5), fan_in**-0.5)


def check_input(
    x: object,
    layer: nn.Module,
    *,
    shape: str,
    ranks: tuple[int, ...],
    axis: int,
    channels: int,
    argument: str = "input",
) -> Tensor:
    """Return an input; raises ConvNNError unless it has the rank, channels, dtype and device of the layer."""
    name = type(layer).__name__
    if not isinstance(x, Tensor):
        raise invalid(argument, f"a tensor {shape}", type(x).__name__, "pass a torch.Tensor")
    dense(argument, x)
    if x.dim() not in ranks:
        raise invalid(argument, f"shape {shape}", f"shape {tuple(x.shape)}", "add or remove axes")
    if x.shape[axis] != channels:
        got = f"{x.shape[axis]} (shape {tuple(x.shape)})"
        raise invalid(argument, f"{channels} channels as {name} was made for", got, "match the layer to its input")
    if not x.is_floating_point():
        raise invalid(argument, "a real floating-point dtype", x.dtype, "convert it with .float()")
    parameter = next(layer.parameters(), None)
    if parameter is None or autocast_is_on(x.device):
        return x
    if x.dtype != parameter.dtype:
        fix = "convert the input or the layer, or use torch.autocast"
        raise invalid(argument, f"{parameter.dtype} as the weights of {name}", x.dtype, fix)
    if x.device != parameter.device:
        raise invalid(argument, f"device {parameter.device} as the weights of {name}", x.device, "move one of them")
    return x
