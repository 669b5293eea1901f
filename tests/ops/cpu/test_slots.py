"""The aggregation by slot matrices holds a bounded part of the projected values."""

from __future__ import annotations

import pytest
import torch

from convnn.ops.cpu.slots import mix, mix_backward

from ...operators import LargestTensor

BOUND = 16 << 20  # bytes


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_not_the_projected_values_of_the_whole_batch(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    value, weight, index = torch.randn(140, 64, 64), torch.randn(64, 64, 9), torch.randint(64, (140, 64, 9))
    assert value.nbytes * 9 > BOUND
    for run in (
        lambda: mix(value, weight, index, None, 1),
        lambda: mix_backward(value, value, weight, index, None, 1),
    ):
        with LargestTensor() as largest:
            run()
        assert value.nbytes <= largest.size <= BOUND
