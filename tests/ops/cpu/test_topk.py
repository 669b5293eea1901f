"""The k best of every row: by maxima, by topk and by a sorting network, against a sort."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convnn.ops.cpu import network
from convnn.ops.cpu.topk import top

MANY = network.MANY_COLUMNS


def best_of(scores: Tensor, k: int) -> None:
    """Compare with a sort: equal scores may come in any order, but no key may come twice."""
    position = top(scores, k)
    expected = scores.sort(dim=2, descending=True).values[..., :k]
    torch.testing.assert_close(scores.gather(2, position), expected, rtol=0, atol=0, equal_nan=True)
    assert all(len(set(row)) == k for row in position.flatten(0, 1).tolist())


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


@pytest.mark.parametrize("k", [1, 4, 8, 9, 16, 40])
@pytest.mark.parametrize("width", [40, 64, 73, 333, 2500])  # by a network, by maxima, by a heap, by maxima and heaps
@pytest.mark.parametrize("rows", [6, MANY])
@pytest.mark.parametrize("nan", [False, True])
def test_the_best_are_the_best(rows: int, width: int, k: int, nan: bool) -> None:
    scores = awkward(rows, width)
    if nan:
        scores[0, 3, width // 2] = torch.nan
        scores[1, 5, 0] = -torch.tensor(torch.nan)
    best_of(scores, k)
    best_of(scores.double(), k)


@pytest.mark.parametrize("sign", [1.0, -1.0])  # processors make either: inf - inf has the sign bit set on some
@pytest.mark.parametrize(("width", "column"), [(40, 0), (40, 39), (203, 0), (203, 199), (203, 200), (203, 202)])
def test_a_nan_ranks_first_at_every_position(width: int, column: int, sign: float) -> None:
    """The last columns of 203 are in no group of 4."""
    scores = torch.randn(1, MANY, width)
    scores[0, 5, column] = torch.copysign(torch.tensor(torch.nan), torch.tensor(sign))
    assert top(scores, 8)[0, 5, 0] == column
    best_of(scores, 8)


@pytest.mark.parametrize("k", [8, 9])
@pytest.mark.parametrize("width", [9, 15, 16, 17, 25, 32])
def test_few_candidates_in_either_layout(width: int, k: int) -> None:
    scores = awkward(MANY, width)
    best_of(scores, k)
    best_of(scores.permute(2, 0, 1).contiguous().permute(1, 2, 0), k)


@pytest.mark.parametrize("width", network.WIDTHS)
def test_the_network_sorts_whatever_is_put_in(width: int) -> None:
    """The 0-1 principle: a network that sorts every sequence of zeros and ones sorts every sequence."""
    columns = torch.tensor(list(itertools.product([0, 1], repeat=16))).t()
    names = torch.arange(16).unsqueeze(1)
    packed = (columns << 8) | names  # distinct, so that a lost or doubled number shows
    expected = packed.sort(dim=0, descending=True).values[: width + 1]
    least = torch.iinfo(torch.int64).min
    assert torch.equal(
        network.largest(packed.clone(), width), F.pad(expected, (0, 0, 0, width + 1 - len(expected)), value=least)
    )


def test_merging_keeps_the_best_of_many_lists() -> None:
    """3 lists of 16, of which 2 are merged first."""
    packed = torch.stack([torch.randperm(45) for _ in range(200)]).t().contiguous()
    assert torch.equal(network.largest(packed.clone(), 16), packed.sort(dim=0, descending=True).values[:17])
    assert torch.equal(network.largest(packed.int(), 8), packed.int().sort(dim=0, descending=True).values[:9])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [3, 8, 9, 16])
@pytest.mark.parametrize("rows", [40, MANY])  # searched again by topk, by a network
def test_scores_that_differ_in_their_last_bits_are_distinguished(sign: int, k: int, rows: int) -> None:
    """All of a row's, or two of them: of every two that follow each other in rank, the last wanted and the next too."""
    torch.manual_seed(0)
    scores = torch.randn(1, 3 * MANY, 40)
    half = rows // 2
    scores[0, :half] = sign * (1 + torch.stack([torch.randperm(40) for _ in range(half)]) / 2**23)
    for row in range(half, rows):
        order = scores[0, row].argsort(descending=True)
        upper, lower = order[row % 20], order[row % 20 + 1]
        scores[0, row, lower] = torch.nextafter(scores[0, row, upper], torch.tensor(-torch.inf))
    assert torch.equal(top(scores, k), scores.sort(dim=2, descending=True).indices[..., :k])


def test_packed_scores_order_as_scores_do() -> None:
    numbers = torch.tensor([-torch.inf, -3e38, -1.5, -1e-40, -0.0, 0.0, 1e-45, 1e-40, 2.0, 3e38, torch.inf])
    shuffled = torch.randperm(numbers.numel())
    packed = network.pack(numbers[shuffled].unsqueeze(1), shuffled.unsqueeze(1))
    assert network.unpack_indices(packed.sort(dim=0).values).flatten().tolist() == list(range(numbers.numel()))


def test_a_network_does_not_care_whether_subnormal_numbers_are_flushed() -> None:
    """Scores of zero, as of a padded token, have the name's bits alone: they must not be taken for a zero."""
    scores = torch.zeros(1, MANY, 40)
    supported = torch.set_flush_denormal(True)
    try:
        position = top(scores, 8)
    finally:
        torch.set_flush_denormal(False)
    assert supported
    assert all(len(set(row)) == 8 for row in position[0].tolist())
