"""One layer used by several threads at once answers as it does to one: forward keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from convnn import Blend, ConvNN2d, ConvNNAttention, Grid, HybridConvNN2d, Random

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "all": lambda: ConvNN2d(4, 6, 5, candidate_padding=1),
    "random": lambda: ConvNN2d(4, 6, 5, candidates=Random(7)),
    "grid": lambda: ConvNN2d(4, 6, 5, candidates=Grid(3), weighting="softmax"),
    "blend": lambda: ConvNN2d(4, 6, 5, similarity=Blend(0.5), value_coordinates=True),
    "spatial": lambda: ConvNN2d(4, 6, 9, similarity="spatial", candidate_padding=1),
    "hybrid": lambda: HybridConvNN2d(4, 6, 3, k=5),
    "attention": lambda: nn.Sequential(nn.Flatten(2), ConvNNAttention(64, 4, k=3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_threads_do_not_interfere_in_a_layer(name: str) -> None:
    layer = LAYERS[name]().eval()
    sizes = [(8, 8)] * 6 if name == "attention" else [(8, 8), (5, 9), (7, 6), (8, 5), (6, 6), (9, 9)]
    maps = [torch.randn(2, 4, *size) for size in sizes]

    def answer(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = layer(x)
            return out

    alone = [answer(x) for x in maps]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            for ours, expected in zip(pool.map(answer, maps), alone, strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
