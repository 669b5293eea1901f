"""Inputs that are no plain tensors: a tracer's proxies (a call is one node), TorchScript's and nested tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Proxy

from .errors import ConvNNError, invalid

P = ParamSpec("P")
T = TypeVar("T")


class Leaf(nn.Module):
    """A layer whose call is one node of every ``torch.fx`` graph, whatever the tracer and its list of leaves.

    >>> class Double(Leaf):
    ...     def forward(self, x):
    ...         return 2 * x if x.sum() > 0 else x
    >>> [node.target for node in torch.fx.symbolic_trace(nn.Sequential(Double())).graph.nodes]
    ['input', '0', 'output']
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "neighbors"):
            if name in cls.__dict__:
                setattr(cls, name, one_node(cls.__dict__[name]))

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script calls this on every module
        raise _no_torchscript(type(self).__name__)


def one_node(call: Callable[P, T]) -> Callable[P, T]:
    """Make a call with a ``torch.fx.Proxy`` one node of the graph; raises ConvNNError under TorchScript."""
    name = call.__name__

    @functools.wraps(call)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        proxy = _proxy((*args, *kwargs.values()))
        if proxy is not None:
            node: Any = _node(proxy.tracer, run, args, kwargs)
            return node  # type: ignore[no-any-return]  # a Proxy of the result
        if torch._C._get_tracing_state() is not None:
            raise _no_torchscript(type(args[0]).__name__ if args and isinstance(args[0], Leaf) else name)
        return call(*args, **kwargs)

    def no_torchscript() -> NoReturn:
        raise _no_torchscript(name)

    run.__prepare_scriptable__ = no_torchscript  # type: ignore[attr-defined]
    return run


def readable(x: Tensor) -> bool:
    """Return True if the numbers of a tensor can be read: not on the meta device, nor while a graph is made.

    A graph of CUDA too: reading a number waits for the device, which ends its capture.

    >>> readable(torch.zeros(2)), readable(torch.zeros(2, device="meta"))
    (True, False)
    """
    if torch.compiler.is_compiling() or x.is_meta or isinstance(x, FakeTensor):
        return False
    if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    modes = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)  # of make_fx, and what uses it
    return all(torch._C._get_dispatch_mode(mode) is None for mode in modes)


def dense(argument: str, value: Tensor) -> None:
    """Raise ConvNNError for nested tensors and for layouts other than strided."""
    if value.is_nested:
        fix = "pad it with x.to_padded_tensor(0.0), and mask the added tokens with key_padding_mask"
        raise invalid(argument, "one size for all samples", "a nested tensor", fix)
    if value.layout is not torch.strided:
        raise invalid(argument, "a dense tensor", value.layout, "convert it with .to_dense()")


def _proxy(values: tuple[object, ...]) -> Proxy | None:
    """Return the first proxy among values, or in a tuple (neighbours) among them."""
    for value in values:
        if isinstance(value, Proxy):
            return value
        if isinstance(value, tuple):
            inside = _proxy(value)
            if inside is not None:
                return inside
    return None


def _node(tracer: Any, call: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Proxy:
    if not args or not isinstance(args[0], Leaf):
        node: Proxy = tracer.create_proxy("call_function", call, args, kwargs)
        return node
    layer, *others = args
    path = tracer.path_of_module(layer)
    if not path:
        fix = "trace nn.Sequential(layer), or a model that holds it"
        raise invalid("root", "a model whose layers are nodes", f"the {type(layer).__name__} itself", fix)
    if call.__name__ == "forward":
        node = tracer.create_proxy("call_module", path, tuple(others), kwargs)
    else:
        node = tracer.create_proxy("call_method", call.__name__, args, kwargs)
    return node


def _no_torchscript(name: str) -> ConvNNError:
    fix = "use torch.compile, torch.export.export, or convnn.export (ONNX; torch.onnx.export needs dynamo=True)"
    return invalid("model", "no TorchScript (it would fix the sizes of one input)", name, fix)
