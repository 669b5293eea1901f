"""Definition of a custom operator, for PyTorch and the exporter, in one call.

An operator has a **plain form**, a pure function of PyTorch's own operators: it states what is computed, it is what an
exported program runs, and tests compare every other implementation with it. It also runs on every device that has no
kernel of its own; ``kernel`` adds one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import _FlopCounterMode, flop_registry, register_flop_formula

NAMESPACE = "convnn"
# Where calls arrive first while a transform of ``torch.func`` is active.
_TRANSFORMED = "FuncTorchDynamicLayerFrontMode"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
Shape = tuple[int, ...]

PLAIN_FORMS: dict[Any, Callable[..., Any]] = {}
"""The plain form of every operator: as decompositions for ``ExportedProgram.run_decompositions``."""
TWINS: dict[Any, Any] = {}
"""The operator of which another one is a twin: what decomposes the first decomposes the second."""


class _Meaning(NamedTuple):
    """What an operator computes, whatever runs it."""

    plain: Callable[..., Any]
    fake: Callable[..., Any]
    flops: Callable[..., int]


_MEANINGS: dict[Any, _Meaning] = {}


def define(
    plain: Callable[P, R],
    *,
    fake: Callable[P, R],
    flops: Callable[..., int],
    portable: Callable[P, R] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[P, R]:
    """Define an operator with the signature of its plain form, and return it.

    Args:
        plain: the plain form, ``plain_x`` of the operator ``convnn::x``.
        fake: makes an empty result, with its shape, dtype and strides.
        flops: 2 x multiply-adds of the products, from the shapes of the arguments, as FlopCounterMode counts them.
        portable: what runs on devices without a kernel, where the plain form would hold too much at once.
        backward: the gradients of all arguments, from ``ctx`` and those of the results; None for no gradient. The
            arguments are in ``ctx.saved_tensors`` and ``ctx.settings``, tensors first.
    """
    name = plain.__name__.removeprefix("plain_")
    return cast(Callable[P, R], _define(name, _Meaning(plain, fake, flops), portable or plain, backward))


def twin(
    op: Callable[P, R], run: Callable[P, R], *, prefix: str, backward: Callable[..., Any] | None = None
) -> Callable[P, R]:
    """Define and return an operator that means the same as another and is run by another function.

    Its name is that of the other one behind ``prefix``; its plain form, fake and FLOP formula are the same.
    """
    overload = cast(Any, op)._opoverload
    twin_op = _define(prefix + overload._opname, _MEANINGS[overload], run, backward)
    TWINS[twin_op._opoverload] = overload
    return cast(Callable[P, R], twin_op)


def _define(name: str, meaning: _Meaning, run: Callable[..., Any], backward: Callable[..., Any] | None) -> Any:
    plain, fake, flops = meaning
    schema = torch.library.infer_schema(plain, mutates_args=())
    op = torch.library.custom_op(f"{NAMESPACE}::{name}", _returning_new_tensors(run), mutates_args=(), schema=schema)
    op.register_fake(fake)
    if backward is None:
        op.register_vmap(_one_by_one(op))
    else:
        _register_gradient(op, backward)
    _register_flops(op, flops)
    PLAIN_FORMS[op._opoverload], _MEANINGS[op._opoverload] = plain, meaning
    return op


def kernel(op: Callable[..., Any], device_type: str) -> Callable[[F], F]:
    """Let an operator run the decorated function on one type of device."""

    def register(function: F) -> F:
        cast(Any, op).register_kernel(device_type)(_returning_new_tensors(function))
        return function

    return register


def backward_of(plain: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """Return the backward pass that differentiates a plain form with several results, its arguments tensors first."""

    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        args = (*ctx.saved_tensors, *ctx.settings)
        at = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.is_floating_point()]

        def with_tensors(*tensors: Tensor) -> Any:
            replaced = dict(zip(at, tensors, strict=True))
            return plain(*(replaced.get(i, x) for i, x in enumerate(args)))

        gradients = dict(zip(at, torch.func.vjp(with_tensors, *(args[i] for i in at))[1](cotangents), strict=True))
        return tuple(gradients.get(i) for i in range(len(args)))

    return backward


def owned(result: Tensor) -> Tensor:
    """Return a new tensor over the memory and layout of a result, without a copy.

    Autograd records the views that are made inside a custom operator, and forbids in-place changes of a view that
    an operator returns. The tensor returned here is no view of another.

    >>> owned(torch.zeros(3, 2).t())._is_view(), owned(torch.zeros(3, 2).t()).stride()
    (False, (1, 2))
    """
    return result.new_empty(0).set_(result) if result._is_view() else result  # type: ignore[call-overload]


def _returning_new_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any) -> Any:
        result = function(*args)
        return tuple(owned(part) for part in result) if isinstance(result, tuple) else owned(result)

    return run


def _save_arguments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(x for x in inputs if x is None or isinstance(x, Tensor)))
    ctx.settings = tuple(x for x in inputs if not (x is None or isinstance(x, Tensor)))


def _register_gradient(op: Any, backward: Callable[..., Any]) -> None:
    """Register a backward pass, inside and outside of the transforms of ``torch.func``.

    PyTorch differentiates a custom operator only outside of these transforms, and drops the tangents of forward mode
    silently. Inside of them an ``autograd.Function`` calls the operator: it is differentiated there, mapped by a
    loop, and raises an error in forward mode.
    """
    op.register_autograd(backward, setup_context=_save_arguments)
    members = {"forward": op.__call__, "setup_context": _save_arguments, "backward": backward, "vmap": _one_by_one(op)}
    name = op._opoverload._opname
    function: Any = type(name, (torch.autograd.Function,), {key: staticmethod(of) for key, of in members.items()})
    _library.impl(name, function.apply, _TRANSFORMED)


def _one_by_one(op: Any) -> Callable[..., Any]:
    """Return the vmap rule that calls the operator once per sample of the mapped axis, and stacks results in front."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        results = []
        for i in range(info.batch_size):
            sample = [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]
            results.append(op(*sample))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(part) for part in zip(*results, strict=True)), (0,) * len(results[0])

    return rule


def _register_flops(op: Any, formula: Callable[..., int]) -> None:
    """Register a formula with PyTorch's counter; counters that exist already learn it at its first call."""
    packet = op._opoverload.overloadpacket
    if packet not in flop_registry:  # PyTorch takes one formula per operator, and refuses it at a second import
        register_flop_formula(packet)(formula)
        op.register_torch_dispatch(_FlopCounterMode, _count)


def _count(mode: Any, operator: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    packet = operator.overloadpacket
    mode.counter.flop_registry.setdefault(packet, flop_registry[packet])
    return mode.__torch_dispatch__(operator, types, args, kwargs)
