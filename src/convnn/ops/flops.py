"""What the custom operators cost: 2 x multiply-adds of the products they perform, as torch's FlopCounterMode counts.

Importing this module registers them with PyTorch, for counters that exist already too.
Sums of rows without weights have no products and count 0, as additions do everywhere in that counter.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import _FlopCounterMode, flop_registry, register_flop_formula

from . import euclidean, sampled  # noqa: F401  # with what they import, they define all operators

Shape = tuple[int, ...]


def _nearest(query: Shape, key: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query) * key[1]


def _nearest_euclidean(query: Shape, key: Shape, factor: Any, query_position: Shape | None, *_: Any, **__: Any) -> int:
    axes = 0 if query_position is None else query_position[1]
    return 2 * query[0] * query[1] * key[1] * (query[2] + axes)


def _weighted_rows(rows: Shape, index: Shape, weight: Shape | None, *_: Any, **__: Any) -> int:
    return 0 if weight is None else 2 * math.prod(index) * rows[2]


def _pairs(query: Shape, table: Shape, index: Shape, **_: Any) -> int:
    return 2 * math.prod(index) * query[2]


def _projection(value: Shape, weight: Shape) -> int:
    return 2 * value[0] * value[1] * math.prod(weight)


def _linear(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _columns(x: Shape, y: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * y[1]


def _sampled_mix(value: Shape, slots: Shape, bias: Any, keys: Shape, places: Shape, *_: Any, **__: Any) -> int:
    k, out, channels = slots
    return 2 * places[0] * (places[1] + keys[0] * (k - 1)) * out * channels


def _sampled_mix_backward(
    grad: Shape, value: Shape, slots: Shape, keys: Shape, places: Shape, *rest: Any, **_: Any
) -> int:
    forward = _sampled_mix(value, slots, None, keys, places)
    return 2 * forward if rest[-1] else forward


def _slot_mix(value: Shape, weight: Shape, index: Shape, rho: Shape | None, *_: Any, **__: Any) -> int:
    rows = (index[0], index[1], weight[0])
    return _projection(value, weight) + _weighted_rows(rows, index, rho)


def _slot_mix_backward(
    grad: Shape, value: Shape, weight: Shape, index: Shape, rho: Shape | None, *_: Any, **__: Any
) -> int:
    total = 2 * _projection(value, weight) + _weighted_rows(grad, index, rho)
    return total if rho is None else total + _projection(value, weight) + _pairs(grad, value, index)


_FORMULAS: dict[str, Any] = {
    "nearest": _nearest,
    "nearest_euclidean": _nearest_euclidean,
    "bag_sum": _weighted_rows,
    "bag_scatter": _weighted_rows,
    "columns": _columns,
    "linear": _linear,
    "pair_product": _pairs,
    "pair_distance": _pairs,
    "sampled_mix": _sampled_mix,
    "sampled_mix_backward": _sampled_mix_backward,
    "slot_mix": _slot_mix,
    "slot_mix_backward": _slot_mix_backward,
}


def _count(mode: Any, operator: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    """Let a counter that was made before the formulas were registered know this operator's, and run it."""
    packet = operator.overloadpacket
    mode.counter.flop_registry.setdefault(packet, flop_registry[packet])
    return mode.__torch_dispatch__(operator, types, args, kwargs)


for _name, _formula in _FORMULAS.items():
    _op = getattr(torch.ops.convnn, _name)
    if _op not in flop_registry:  # torch takes one formula an operator, and refuses it at a second import
        register_flop_formula(_op)(_formula)
        torch.library.register_torch_dispatch(f"convnn::{_name}", _FlopCounterMode, _count)
