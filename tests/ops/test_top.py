"""The k best of every row: by groups, by topk and by a sorting network, against a sort."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from convnn.ops import network
from convnn.ops import top as top_module
from convnn.ops.top import top


def best_of(scores: Tensor, k: int) -> None:
    """Compare with a sort: equal scores may come in any order, but no key may come twice."""
    place = top(scores, k)
    expected = scores.sort(dim=2, descending=True).values[..., :k]
    torch.testing.assert_close(scores.gather(2, place), expected, rtol=0, atol=0, equal_nan=True)
    assert all(len(set(row)) == k for row in place.flatten(0, 1).tolist())


def awkward(rows: int, width: int) -> Tensor:
    """Many equal scores, signed zeros, infinities and subnormal numbers."""
    scores = torch.randint(-30, 30, (2, rows, width)).float()
    scores[0, 1] = torch.randn(width)
    scores[0, 2, ::3] = -torch.inf
    scores[1, 4] = -torch.inf
    scores[1, 5] = torch.tensor([0.0, -0.0]).repeat(width)[:width]
    scores[1, 3] = torch.randn(width) * 1e-40
    scores[1, 2, width // 3] = torch.inf
    return scores


@pytest.mark.parametrize("k", [1, 4, 8, 9, 40])
@pytest.mark.parametrize("width", [40, 73, 128, 333, 1025])
@pytest.mark.parametrize("rows", [6, top_module._MANY_QUERIES])  # by topk, by the network where it serves
@pytest.mark.parametrize("nan", [False, True])
def test_the_best_are_the_best(rows: int, width: int, k: int, nan: bool) -> None:
    scores = awkward(rows, width)
    if nan:
        scores[0, 3, width // 2] = torch.nan
        scores[1, 5, 0] = -torch.tensor(torch.nan)
    best_of(scores, k)
    best_of(scores.double(), k)


@pytest.mark.parametrize("sign", [1.0, -1.0])  # processors make either: inf - inf has the sign bit set on some
@pytest.mark.parametrize("column", [0, 1, 100, 1020, 1021, 1022, 1023, 1024, 1026, 1027])
def test_a_nan_counts_as_the_largest_wherever_it_stands(column: int, sign: float) -> None:
    """The last columns of 1,028 are in no group of 4 groups of 4 groups."""
    scores = torch.randn(1, top_module._MANY_QUERIES, 1028)[..., : column + 1 if column > 1020 else None].clone()
    scores[0, 5, column] = torch.copysign(torch.tensor(torch.nan), torch.tensor(sign))
    assert top(scores, 8)[0, 5, 0] == column
    best_of(scores, 8)


@pytest.mark.parametrize("width", [8, 9, 15, 25, 32])
def test_few_candidates_in_either_layout(width: int) -> None:
    scores = awkward(300, width)
    best_of(scores, 8)
    best_of(scores.permute(2, 0, 1).contiguous().permute(1, 2, 0), 8)


def test_the_network_sorts_whatever_is_put_in() -> None:
    """The 0-1 principle: a network that sorts every sequence of zeros and ones sorts every sequence."""
    columns = torch.tensor(list(itertools.product([0, 1], repeat=16))).t()
    names = torch.arange(16).unsqueeze(1)
    packed = (columns << 8) | names  # distinct, so that a lost or doubled number shows
    expected = packed.sort(dim=0, descending=True).values[:8]
    assert torch.equal(network.best(packed.clone()), expected)
    assert torch.equal(network.best(packed.clone(), in_order=False).sort(dim=0, descending=True).values, expected)


def test_packed_scores_order_as_scores_do() -> None:
    numbers = torch.tensor([-torch.inf, -3e38, -1.5, -1e-40, -0.0, 0.0, 1e-45, 1e-40, 2.0, 3e38, torch.inf])
    shuffled = torch.randperm(numbers.numel())
    packed = network.pack(numbers[shuffled].unsqueeze(1), shuffled.unsqueeze(1))
    assert network.names(packed.sort(dim=0).values).flatten().tolist() == list(range(numbers.numel()))


def test_a_network_does_not_care_whether_subnormal_numbers_are_flushed() -> None:
    """Scores of zero, as of a padded token, have the name's bits alone: they must not be taken for a zero."""
    scores = torch.zeros(1, 300, 40)
    supported = torch.set_flush_denormal(True)
    try:
        place = top(scores, 8)
    finally:
        torch.set_flush_denormal(False)
    assert supported
    assert all(len(set(row)) == 8 for row in place[0].tolist())
