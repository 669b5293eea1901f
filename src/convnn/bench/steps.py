"""The steps that are timed: a layer or a function of tokens, run forward, or forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Step = Callable[[], object]
Maker = Callable[[bool], Step]
"""Makes a step; given True, one that also runs backward, to the input and to every parameter."""


class Function(nn.Module):
    """A function of tokens and weights, as a layer."""

    def __init__(self, function: Callable[..., Tensor], *weights: Tensor) -> None:
        super().__init__()
        self.function, self.weights = function, nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(x, *self.weights)


def step_of(layer: nn.Module, x: Tensor, grad: bool) -> Step:
    """Return the step that runs a layer on x: forward, or with ``grad`` also backward from a random gradient."""
    if not grad:

        def forward() -> None:
            with torch.no_grad():
                layer(x)

        return forward
    inputs = [x.clone().requires_grad_(), *layer.parameters()]
    with torch.no_grad():
        upstream = torch.randn_like(layer(x))

    def both() -> None:
        for tensor in inputs:
            tensor.grad = None
        # Into .grad, as in training, where a gradient is copied to the layout of its parameter.
        layer(inputs[0]).backward(upstream, inputs=inputs)

    return both


def training_step(model: nn.Module, images: Tensor, classes: int) -> Step:
    """Return a whole training step: forward, cross-entropy, backward, and an SGD update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(images.shape[0]) % classes

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def features(shape: tuple[int, int, int], *, channels_last: bool = True) -> Tensor:
    """Return random maps of (batch, channels, side); channels-last is the format of tokens."""
    batch, channels, side = shape
    x = torch.randn(batch, channels, side, side)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x
