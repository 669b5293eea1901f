"""What a model costs: parameters, and the floating-point operations that one forward pass really performs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .errors import invalid
from .ops.flops import formulas


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Count the numbers in a model's parameters, shared ones once; ``trainable`` leaves out the frozen ones.

    >>> count_parameters(nn.Conv2d(3, 8, 3))
    224
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def count_flops(model: nn.Module, *inputs: Tensor) -> int:
    """Count the FLOPs of one forward pass, by the ``executed`` convention.

    Every product that is really performed counts: 2 x multiply-adds of convolutions, matrix products and attention,
    the similarity search of a ConvNN layer among them. Elementwise work is not counted. The model runs once on
    ``inputs`` without gradients, in eval mode, and is left as it was. Raises ConvNNError when there is no input.

    >>> count_flops(nn.Linear(4, 5), torch.zeros(2, 4))
    80
    """
    if not inputs:
        raise invalid("inputs", "the tensors that the model takes", "none", "pass count_flops(model, x)")
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    with torch.no_grad(), evaluating(model), _plain_attention(), counter:
        model(*inputs)
    return int(counter.get_total_flops())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode for a while; afterwards every submodule has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Switch off nn.MultiheadAttention's fused eval kernel: the counter cannot see the products inside it."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
