"""Without the library every layer runs in plain PyTorch and computes the same."""

from __future__ import annotations

import pytest
import torch

from convnn import _checks, _plan, native
from convnn.testing import assert_close, layer_with_gradients

from ..layers import LAYERS, example, make
from ..operators import Waits


@pytest.mark.parametrize("samples", [2, 0])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name: str, samples: int) -> None:
    layer, x = make(name).eval(), example(name, batch=samples)
    expected = layer_with_gradients(layer.double(), x.double())
    layer.float()
    with native.at_level("off"):
        assert native.why_not() is not None
        assert_close(layer_with_gradients(layer, x), expected)
    assert x.dtype == torch.float32


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a step can be captured in a CUDA graph, during which no numbers of the input are checked."""
    for module in (_checks, _plan):
        monkeypatch.setattr(module, "readable", lambda x: False)
    layer, x = make(name), example(name, batch=2)
    with native.at_level("off"), Waits() as waits:
        layer_with_gradients(layer, x)
    assert waits.calls == []
