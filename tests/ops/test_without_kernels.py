"""A layer computes the same on a device that has no kernel of ours."""

from __future__ import annotations

import pytest
import torch

from convnn.testing import assert_close, layer_with_gradients

from ..layers import LAYERS, example, make
from ..operators import kernels


@pytest.mark.parametrize("samples", [2, 0])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name: str, samples: int) -> None:
    layer, x = make(name).double().eval(), example(name, batch=samples, dtype=torch.float64)
    expected = layer_with_gradients(layer, x)
    with kernels(False):
        assert_close(layer_with_gradients(layer, x), expected)
