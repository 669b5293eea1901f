"""Activation memory: the tensors that autograd saves for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .modes import training
from .tracking import Plan, Tracker


def activation_bytes(model: nn.Module, inputs: Sequence[Tensor], plan: Plan) -> list[int]:
    """Return the bytes that every unit saves for the backward pass of one forward pass in training mode.

    A storage counts once, whole, for the unit that saves it first; parameters and buffers do not count. The input of a
    layer that needs it for its gradient is an activation.
    """
    owned = {_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}
    saved = [0 for _ in plan.units]
    tracker = Tracker(plan)

    def pack(tensor: Tensor) -> None:
        key = _key(tensor)
        if key not in owned and key not in kept:
            # Held until the end, as autograd does, so that no later storage reuses its address.
            kept[key] = tensor.untyped_storage()
            saved[tracker.row.unit] += kept[key].nbytes()

    with (
        training(model),
        torch.enable_grad(),
        tracker,
        torch.autograd.graph.saved_tensors_hooks(pack, _unexpected_unpack),
    ):
        model(*inputs)
    return saved


def _key(tensor: Tensor) -> int:
    """Identify a storage, on the meta device too, where no storage has an address."""
    return int(tensor.untyped_storage()._cdata)


def _unexpected_unpack(_: object) -> Tensor:
    raise RuntimeError("nothing is unpacked: there is no backward pass")
