"""``torch.func.vmap`` of a custom operator: one call per sample of the mapped axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def register_loop(op: Any) -> None:
    """Register the loop over the mapped axis as the operator's vmap rule; results are stacked in front."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        results = []
        for i in range(info.batch_size):
            sample = [a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]
            results.append(op(*sample))
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(torch.stack(part) for part in zip(*results, strict=True)), (0,) * len(results[0])

    op.register_vmap(rule)
