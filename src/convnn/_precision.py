"""The dtype policy: similarities are compared in float32 or better, whatever the dtype of the tokens.

Selection is discontinuous: a rounded similarity is another neighbour. So similarities of half-precision tokens are
computed, compared and returned in float32, autocast or not; what is aggregated keeps the values' dtype.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def search_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which similarities are compared: float32 for half inputs, else the input's own.

    >>> search_dtype(torch.bfloat16), search_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest precision of a device: float64, or float32 where there is none.

    >>> wide_dtype(torch.device("cpu"))
    torch.float64
    """
    return torch.float32 if device.type == "mps" else torch.float64


def autocast_is_on(device: torch.device) -> bool:
    """Return True if operations on a device choose their own precision, so that dtypes may differ."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which products of ``x`` run: its own, or autocast's where that is on."""
    return torch.get_autocast_dtype(x.device.type) if autocast_is_on(x.device) else x.dtype


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which similarities keep the precision of ``search_dtype`` under autocast too."""
    # Only where it is on: in an exported program the context is an operator that cannot be saved.
    return torch.autocast(device.type, enabled=False) if autocast_is_on(device) else nullcontext()
