"""The custom operators, and the largest tensor that a computation makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convnn.ops.bags import bag_scatter, bag_sum, pair_distance, pair_product
from convnn.ops.euclidean import nearest_euclidean
from convnn.ops.native import (
    native_bag_scatter,
    native_bag_sum,
    native_nearest,
    native_nearest_euclidean,
    native_pair_distance,
    native_pair_product,
    native_sampled_mix,
    native_sampled_mix_backward,
    native_slot_mix,
    native_slot_mix_backward,
)
from convnn.ops.nearest import nearest
from convnn.ops.sampled import sampled_mix, sampled_mix_backward
from convnn.ops.slots import slot_mix, slot_mix_backward

OPERATORS: tuple[Any, ...] = (
    bag_sum, bag_scatter, pair_product, pair_distance, nearest, nearest_euclidean,
    slot_mix, slot_mix_backward, sampled_mix, sampled_mix_backward,
    native_bag_sum, native_bag_scatter, native_pair_product, native_pair_distance,
    native_nearest, native_nearest_euclidean, native_slot_mix, native_slot_mix_backward,
    native_sampled_mix, native_sampled_mix_backward,
)  # fmt: skip


def derivatives(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return an output, its gradients and theirs: each time of the sum of squares, by all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    return [out, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]


class InsideOperators(TorchDispatchMode):
    """Sees every call, inside the custom operators too."""

    def __init__(self) -> None:
        super().__init__()
        # PyTorch shows a mode the calls of custom operators, and nothing of what these run.
        self.inside = {op._opoverload: op._backend_fns.get("cpu", op._init_fn) for op in OPERATORS}

    def see(self, func: Any, result: Any) -> None:
        """Look at a call of PyTorch's own operators and at its result."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.inside:
            with self:
                return self.inside[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        self.see(func, result)
        return result


class LargestTensor(InsideOperators):
    """Records the bytes of the largest tensor that is made."""

    size = 0

    def see(self, func: Any, result: Any) -> None:
        self.size = max([self.size, *(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))])


class Waits(InsideOperators):
    """Records the calls whose result depends on numbers of a tensor, for which a program waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def see(self, func: Any, result: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2", "equal"):
            self.calls.append(name)
