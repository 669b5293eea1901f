"""How rows of the whole batch are numbered, and a k-NN index inverted."""

from __future__ import annotations

import pytest
import torch

from convnn.ops.bags import slot_rows
from convnn.ops.cpu.bags import flat_rows, flat_slot_rows, invert


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 4), (2, 0, 3), (0, 2, 3), (2, 4, 0)])
def test_slots_and_samples_are_numbered_at_once_as_one_after_the_other(shape: tuple[int, int, int]) -> None:
    index = torch.randint(0, 7, shape)
    expected = flat_rows(slot_rows(index, 7), 7 * shape[2])
    assert torch.equal(flat_slot_rows(index, 7), expected)


def test_numbers_beyond_32_bits() -> None:
    """2^30 values in 4 slots of 2 samples."""
    index = torch.tensor([[[0, 1, 2, 3]], [[5, 6, 7, 2**30 - 1]]])
    expected = [slot + 4 * (value + sample * 2**30) for sample, row in enumerate(index[:, 0].tolist())
                for slot, value in enumerate(row)]  # fmt: skip
    assert flat_slot_rows(index, 2**30).tolist() == expected


@pytest.mark.parametrize("edges", [100, 5000, 40000])  # sorted by comparison, by digits with padding, by digits
def test_an_inverted_index_lists_the_edges_of_each_row(edges: int) -> None:
    index = torch.randint(0, 300, (2, edges // 8, 4))
    index[0, 3] = 299
    inverted = invert(index, 300)
    flat = (index + torch.tensor([0, 300]).view(2, 1, 1)).flatten()
    starts = [0, *inverted.ends[:-1].tolist()]
    for row in (0, 17, 299, 300, 599):
        found = inverted.order[starts[row] : inverted.ends[row]].tolist()
        assert found == (flat == row).nonzero().flatten().tolist()
    assert inverted.order.sort().values.equal(torch.arange(flat.numel()))
