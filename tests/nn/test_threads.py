"""One layer used by several threads at once answers as it does to one: forward keeps nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from ..layers import LAYERS, example, make


@pytest.mark.parametrize("name", LAYERS)
def test_threads_do_not_interfere_in_a_layer(name: str) -> None:
    layer = make(name).eval()
    inputs = [example(name, size) for size in (8, 4, 6, 8, 10, 6)]

    def answer(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = layer(x)
            return out

    alone = [answer(x) for x in inputs]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for ours, expected in zip(pool.map(answer, inputs), alone, strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
