"""The operators by their kernels, and without them: as on a device that has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convnn.ops.bags import bag_scatter, bag_sum, pair_distance, pair_product
from convnn.ops.euclidean import nearest_euclidean
from convnn.ops.linear import columns, linear
from convnn.ops.nearest import nearest
from convnn.ops.sampled import sampled_mix, sampled_mix_backward
from convnn.ops.slots import slot_mix, slot_mix_backward

OPERATORS = (
    bag_sum, bag_scatter, pair_product, pair_distance, linear, columns, nearest, nearest_euclidean,
    slot_mix, slot_mix_backward, sampled_mix, sampled_mix_backward,
)  # fmt: skip


@pytest.fixture(params=["kernels", "no kernels"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with ExitStack() as stack:
        for operator in OPERATORS:
            stack.enter_context(operator.set_kernel_enabled("cpu", enabled=request.param == "kernels"))
        yield request.param


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result
