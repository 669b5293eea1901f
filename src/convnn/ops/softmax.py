"""The softmax over few neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers in the widest vector of a CPU, in float32.
_VECTOR = 16


def short_softmax(x: Tensor) -> Tensor:
    """Return ``F.softmax`` over the last axis of ``(..., k)``, faster on a CPU where k is small.

    >>> short_softmax(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    k = x.shape[-1]
    if k >= _VECTOR or x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return F.softmax(x, dim=-1)
    # Torch goes through rows shorter than a vector number by number; filled up, they are vectors.
    return F.softmax(F.pad(x, (0, _VECTOR - k), value=-torch.inf), dim=-1)[..., :k].contiguous()
