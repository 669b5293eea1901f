"""What all layers share: the operator's options, checked once and repeated in the layer's repr."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from ..errors import invalid, shown, unknown_name
from ..knn import check_impl, knn_gather
from ..precision import autocast_is_on
from ..tracing import Leaf, dense
from ..types import WEIGHTINGS, Blend, Candidates, Neighbors, Random, Similarity, Weighting

AGGREGATIONS = ("standard", "depthwise", "depthwise_separable", "sum")
SEED_KEY = "evaluation_seed"
"""What a state dict calls the seed of a layer's random candidates in evaluation."""
_SEEDS = itertools.count()
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class NeighborLayer(Leaf):
    """A layer that finds neighbours: holds and checks the options of the search and of the weighting.

    Raises:
        ConvNNError: an option is not one that the operator has.
    """

    eval_seed: int

    def __init__(
        self,
        k: int | None,
        *,
        similarity: Similarity,
        candidates: Candidates,
        include_self: bool | None,
        weighting: Weighting,
        aggregation: str,
        temperature: float,
        scale: float | None,
        impl: str,
    ) -> None:
        super().__init__()
        checks.similarity(similarity)
        checks.candidates(candidates)
        checks.name("weighting", weighting, WEIGHTINGS)
        checks.name("aggregation", aggregation, AGGREGATIONS)
        check_impl(impl)
        if k is None and aggregation != "sum":
            fix = "give a number, or use aggregation='sum'"
            raise invalid("k", f"a number (aggregation={aggregation!r} has one weight per slot)", None, fix)
        if isinstance(k, tuple | list):
            raise invalid("k", "a whole number of neighbours", k, "give a kernel's number of taps, e.g. 9 for (3, 3)")
        self.k = None if k is None else checks.whole("k", k)
        self.similarity = similarity
        self.candidates = candidates
        self.include_self = None if include_self is None else checks.flag("include_self", include_self)
        self.weighting = weighting
        self.aggregation = aggregation
        self.temperature = checks.temperature_of_softmax(temperature, weighting)
        self.scale = checks.scale_of_dot(scale, similarity)
        self.impl = impl
        # Random candidates of an evaluation: the same at every call and on every device, others in every layer.
        self.eval_seed = next(_SEEDS)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save which candidates an evaluation draws, beside the weights."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.candidates, Random):
            destination[prefix + SEED_KEY] = torch.tensor(self.eval_seed, device="cpu")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load which candidates an evaluation draws, if that was saved."""
        seed = state_dict.get(prefix + SEED_KEY)
        if isinstance(seed, Tensor) and not seed.is_meta:
            self.eval_seed = int(seed)
        weights = {name: value for name, value in state_dict.items() if name != prefix + SEED_KEY}
        super()._load_from_state_dict(weights, prefix, *args, **kwargs)

    @property
    def candidates(self) -> Candidates:
        """Who may be a neighbour; positions as a tensor ``(r,)`` on the CPU."""
        kept = self._candidates
        return torch.tensor(kept, dtype=torch.int64, device="cpu") if isinstance(kept, tuple) else kept

    @candidates.setter
    def candidates(self, value: Candidates) -> None:
        # Positions are kept as numbers: what moves, loads, averages or empties a model's tensors would change them.
        self._candidates = _numbers(value) if isinstance(value, Tensor) else value

    def _search_options(self) -> dict[str, Any]:
        """Return the keywords of ``knn_search`` that do not depend on the input."""
        candidates = self.candidates
        if isinstance(candidates, Random) and not self.training:
            candidates = dataclasses.replace(candidates, seed=self.eval_seed, generator=None)
        return {
            "similarity": self.similarity,
            "candidates": candidates,
            "include_self": self.include_self,
            "scale": self.scale,
        }

    def _search_impl(self) -> str:
        """Return the implementation for half of the operator, which those of the whole cannot run."""
        return self.impl if self.impl in ("reference", "dense", "tiled") else "auto"

    def _weighting_options(self) -> dict[str, Any]:
        """Return the keywords of ``knn_gather`` that do not depend on the input."""
        return {"weighting": self.weighting, "temperature": self.temperature}

    def _gather(self, value: Tensor, neighbors: Neighbors, queries: int, **options: Any) -> Tensor:
        """Aggregate neighbours that were found before, by this layer or another: ``(B, queries, k)`` of the values."""
        if isinstance(neighbors, Neighbors) and isinstance(neighbors.index, Tensor) and neighbors.index.dim() == 3:
            expected, got = (queries, self.k), tuple(neighbors.index.shape[1:])
            if got[0] != queries or self.k not in (None, got[1]):
                fix = "take them from neighbors() of a layer with this geometry and k"
                raise invalid("neighbors", f"(N, k) = {expected}, the layer's queries and slots", got, fix)
        options |= self._weighting_options()
        return knn_gather(value, neighbors, impl=self._search_impl(), **options)

    def _neighbor_repr(self, similarity: str = "cosine", weighting: str = "ones", aggregation: str = "standard") -> str:
        """Write the shared options that are not the given defaults, each behind a comma."""
        positions = isinstance(self.candidates, Tensor)
        return given_repr({"candidates": self.candidates} if positions else {}) + options_repr({
            "similarity": (self.similarity, similarity),
            "candidates": ("all" if positions else self.candidates, "all"),
            "weighting": (self.weighting, weighting),
            "aggregation": (self.aggregation, aggregation),
            "temperature": (self.temperature, 1.0),
            "scale": (self.scale, None),
            "impl": (self.impl, "auto"),
        })  # fmt: skip


def _numbers(positions: Tensor) -> tuple[int, ...]:
    """Return the positions as numbers, or refuse a tensor that has none."""
    if positions.is_meta:
        fix = 'make them where they have values, e.g. torch.arange(9, device="cpu")'
        raise invalid("candidates", "positions with values", "a tensor on the meta device", fix)
    return tuple(positions.tolist())


def options_repr(options: Mapping[str, tuple[object, object]]) -> str:
    """Write ``, name=value`` for every option whose value is not its default.

    >>> options_repr({"stride": (2, 1), "groups": (1, 1)})
    ', stride=2'
    """
    return "".join(f", {name}={value!r}" for name, (value, default) in options.items() if value != default)


def given_repr(options: Mapping[str, object]) -> str:
    """Write ``, name=value`` for every option; a tensor as the call that makes it."""
    written = {name: f"tensor({v.tolist()})" if isinstance(v, Tensor) else repr(v) for name, v in options.items()}
    return "".join(f", {name}={value}" for name, value in written.items())


def check_options(options: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse a keyword that is not one of ``allowed``, suggesting the closest."""
    names = frozenset(allowed)
    for name in options:
        if name not in names:
            raise unknown_name("option", name, sorted(names))


def keywords_of(kind: Callable[..., object]) -> frozenset[str]:
    """Return the names of the keyword-only arguments of a layer's constructor.

    >>> sorted(keywords_of(lambda k, *, bias=True, stride=1: None))
    ['bias', 'stride']
    """
    parameters = inspect.signature(kind).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def check_dtype(argument: str, dtype: object) -> None:
    """Refuse a dtype of parameters that no layer computes in; None stands for torch's default."""
    if dtype not in (None, torch.float16, torch.bfloat16, torch.float32, torch.float64):
        expected = "parameters of torch.float16, bfloat16, float32 or float64"
        raise invalid(argument, expected, shown(dtype), "convert it, or leave it as it is")


def per_axis(argument: str, value: object, dims: int, *, at_least: int) -> tuple[int, ...]:
    """Return one number per axis from one number or a sequence of ``dims`` numbers."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * dims
    if len(values) != dims:
        raise invalid(argument, f"one number, or {dims} (one per axis)", repr(value), f"give {dims} numbers")
    return tuple(checks.whole(argument, number, at_least=at_least) for number in values)


def check_trains(argument: str, layer: NeighborLayer) -> None:
    """Refuse what projects or normalises queries and keys where neither reaches the output: it would never train."""
    similarity, fix = layer.similarity, f"leave {argument} out, or use weighting='softmax' or 'identity'"
    if layer.weighting == "ones":
        expected = "False with weighting='ones' (similarities then only choose, and no gradient flows through a choice)"
        raise invalid(argument, expected, True, fix)
    if similarity == "spatial" or (isinstance(similarity, Blend) and similarity.lam == 0):
        expected = f"False with similarity={similarity!r} (which compares positions alone)"
        raise invalid(argument, expected, True, f"leave {argument} out, or compare features")
    if layer.weighting == "softmax" and layer.k == 1:
        expected = "False with k=1 and weighting='softmax' (the weight of a single neighbour is always 1)"
        raise invalid(argument, expected, True, f"leave {argument} out, or raise k")


def simplest(values: tuple[int, ...]) -> int | tuple[int, ...]:
    """Write one number for equal numbers per axis, for reprs."""
    return values[0] if len(set(values)) == 1 else values


def aggregation_groups(aggregation: str, groups: int, *, value: int, out: int) -> int:
    """Return the groups in which ``value`` channels are aggregated to ``out``, or refuse what does not divide."""
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
    """Initialise slot weights ``(C_out, C_in/groups, k)`` and bias as ``nn.Conv*d`` initialises its own."""
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
    """Return an input, or refuse one that has not the rank, the channels or the dtype that the layer works on."""
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
