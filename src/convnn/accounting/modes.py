"""Modes of a model during a measurement, undone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .._utils.modules import in_mode
from ..nn.layer import NeighborLayer
from ..types import Random


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Put the model in training mode for a while; modes, buffers and random states come back afterwards."""
    buffers = [
        (owner._buffers, name, buffer, buffer.detach().clone())
        for owner in model.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    states = [(generator, generator.get_state()) for generator in _generators(model)]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with in_mode(model, training=True), torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)
            with torch.no_grad():
                for owned, name, buffer, before in buffers:
                    owned[name] = buffer
                    # Only if changed: an expanded buffer cannot be written to.
                    if not buffer.is_meta and not torch.equal(buffer, before):
                        buffer.copy_(before)


def _generators(model: nn.Module) -> set[torch.Generator]:
    """Return the generators that random candidates are drawn from."""
    specs = (layer.candidates for layer in model.modules() if isinstance(layer, NeighborLayer))
    drawn = (spec.generator for spec in specs if isinstance(spec, Random))
    return {generator for generator in drawn if isinstance(generator, torch.Generator)}


@contextmanager
def plain_attention() -> Iterator[None]:
    """Switch off nn.MultiheadAttention's fused eval kernel: a counter cannot see the products inside it."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
