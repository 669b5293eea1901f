"""Definition of the native form of an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ... import native
from ..._precision import without_autocast
from ..registry import kernel, twin

P = ParamSpec("P")
R = TypeVar("R")


def define_native(
    op: Callable[P, R], form: Callable[P, R], backward: Callable[..., Any] | None = None
) -> Callable[P, R]:
    """Define and return the twin of an operator that runs ``form`` where the library is, and the operator elsewhere.

    ``form`` computes in float32: float64 tokens, the first argument, are left to the operator too.
    """

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        if not isinstance(first, Tensor) or first.dtype == torch.float64 or native.why_not() is not None:
            return op(*args, **kwargs)
        with without_autocast(first.device):  # kernels read float32 at the addresses that they are given
            return form(*args, **kwargs)

    native_op = twin(op, op, prefix="native_", backward=backward)
    kernel(native_op, "cpu")(run)
    return native_op


def as_tokens(x: Tensor) -> Tensor:
    """Return float32 tokens ``(B, N, C)`` of which rows or columns are contiguous, without a copy where they are."""
    x = x.float()
    return x if 1 in x.stride()[1:] and 0 not in x.stride() else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """Return float32 tokens ``(B, N, C)`` whose rows are contiguous, without a copy where they are."""
    x = x.float()
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def as_weights(x: Tensor | None) -> Tensor | None:
    """Return contiguous float32 numbers, or None."""
    return None if x is None else x.float().contiguous()


def as_index(index: Tensor) -> Tensor:
    """Return a contiguous int64 index."""
    return index.long().contiguous()
