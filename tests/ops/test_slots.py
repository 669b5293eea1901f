"""How many samples the aggregation by slot matrices takes at a time."""

from __future__ import annotations

import pytest
import torch

from convnn.ops.slots import _CHUNK_BYTES, _EVEN_BYTES, _chunk

SIDES = (7, 16, 32, 56, 256)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_a_chunk_is_bounded_however_many_threads_there_are(
    side: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, weight = torch.empty(1, side**2, 64, device="meta"), torch.empty(64, 1, 9, device="meta")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    sample = side**2 * 64 * 9 * 4
    for device in ("cpu", "meta"):
        count = _chunk(torch.empty_like(value, device=device), weight)
        assert count >= 1
        assert count == 1 or count * sample <= (_EVEN_BYTES if device == "cpu" else _CHUNK_BYTES)


@pytest.mark.parametrize(("side", "expected"), [(16, 8), (32, 2), (56, 2), (256, 1)])
def test_two_threads_get_equally_many_samples_where_these_are_not_too_large(
    side: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert _chunk(torch.empty(1, side**2, 64), torch.empty(64, 1, 9)) == expected
