"""On a device without kernels too, no operator holds scores of all pairs or a k-fold copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from convnn.ops.bags import bag_scatter, bag_sum, pair_distance, pair_product
from convnn.ops.euclidean import nearest_euclidean
from convnn.ops.nearest import nearest
from convnn.ops.registry import PLAIN_FORMS
from convnn.ops.sampled import sampled_mix
from convnn.ops.slots import slot_mix, slot_mix_backward
from convnn.ops.tiles import TILE_NUMBERS, tiles

from ..operators import LargestTensor


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def index(count: int = 900) -> torch.Tensor:
    return torch.randint(count, (2, 900, 20))


def masked() -> torch.Tensor:
    return torch.rand(2, 1500) < 0.2


def skip(count: int) -> torch.Tensor:
    return torch.arange(count).masked_fill(torch.rand(count) < 0.5, -1)


TABLE, GRID = (2, 900, 150), [900, 900, 0, 1]
CASES: dict[str, tuple[Any, Callable[[], tuple[Any, ...]]]] = {
    "nearest": (nearest, lambda: (rows(2, 1500, 4), rows(2, 1500, 4), None, masked(), skip(1500), 5, False)),
    "samples apart": (nearest, lambda: (rows(5, 1000, 4), rows(5, 1000, 4), None, None, None, 5, False)),
    "stable": (nearest, lambda: (rows(1, 600, 16), rows(1, 600, 16), rows(1, 600), None, skip(600), 5, True)),
    "nearest_euclidean": (
        nearest_euclidean,
        lambda: (rows(2, 1500, 4), rows(2, 1500, 4), rows(2, 1, 1), rows(1500, 2), rows(1500, 2), None, None, 5, False),
    ),
    "bag_sum": (bag_sum, lambda: (rows(*TABLE), index(), rows(2, 900, 20))),
    "bag_scatter": (bag_scatter, lambda: (rows(*TABLE), index(), rows(2, 900, 20), 900)),
    "pair_product": (pair_product, lambda: (rows(*TABLE), rows(*TABLE), index())),
    "pair_distance": (pair_distance, lambda: (rows(*TABLE), rows(*TABLE), index())),
    "slot_mix": (slot_mix, lambda: (rows(*TABLE), rows(4, 150, 20), index(), rows(2, 900, 20), 1)),
    "slot_mix_backward": (
        slot_mix_backward,
        lambda: (rows(2, 900, 4), rows(*TABLE), rows(4, 150, 20), index(), rows(2, 900, 20), 1),
    ),
    "sampled_mix": (
        sampled_mix,
        lambda: (rows(2, 900, 4), rows(21, 150, 4), None, torch.arange(20), index(20), GRID, False),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_computed_in_parts_is_the_plain_form_of_all(name: str) -> None:
    operator, arguments = CASES[name]
    inputs = arguments()
    expected = PLAIN_FORMS[operator._opoverload](*inputs)
    with operator.set_kernel_enabled("cpu", enabled=False):
        torch.testing.assert_close(operator(*inputs), expected)


@pytest.mark.parametrize("name", CASES)
def test_no_more_is_held_than_a_tile(name: str) -> None:
    operator, arguments = CASES[name]
    inputs = arguments()
    with LargestTensor() as largest:
        operator._init_fn(*inputs)  # what the operator runs: a mode does not see into an operator
    assert largest.size <= 8 * TILE_NUMBERS


@pytest.mark.parametrize(("batch", "queries", "numbers"), [(3, 5, 1), (1, 7, 2 * TILE_NUMBERS), (0, 4, 3), (2, 0, 3)])
def test_tiles_are_all_there_is_once(batch: int, queries: int, numbers: int) -> None:
    seen = torch.zeros(batch, queries, dtype=torch.int64)
    for tile in tiles(batch, queries, numbers):
        assert seen[tile].numel() > 0
        seen[tile] += 1
    assert (seen == 1).all()
