"""Custom operators under the transforms of ``torch.func``: ``vmap``, ``grad``, ``vjp``, ``jacrev`` and their nestings.

PyTorch differentiates a custom operator outside of these transforms only, and forgets the tangents of forward mode
without a word. An ``autograd.Function`` that calls the operator takes its place inside of them: it is differentiated
there, mapped by a loop, and refuses forward mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Where calls arrive first while a transform is active.
_TRANSFORMED = "FuncTorchDynamicLayerFrontMode"
_library = torch.library.Library("convnn", "FRAGMENT")


def register_gradient(op: Any, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Register the operator's backward pass and what to save for it, inside and outside of transforms."""
    op.register_autograd(backward, setup_context=save)
    members = {"forward": op.__call__, "setup_context": save, "backward": backward, "vmap": loop(op)}
    name = op._opoverload._opname
    function: Any = type(name, (torch.autograd.Function,), {key: staticmethod(of) for key, of in members.items()})
    _library.impl(name, function.apply, _TRANSFORMED)


def loop(op: Any) -> Callable[..., Any]:
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
