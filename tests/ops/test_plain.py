"""The plain forms of the custom operators and their kernels compute the same."""

from __future__ import annotations

import pytest
import torch

from convnn.ops import bags, euclidean, nearest, sampled, slots

B, N, M, C, K = 3, 7, 11, 6, 4


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def index() -> torch.Tensor:
    return torch.randint(0, M, (B, N, K))


def masked() -> torch.Tensor:
    mask = torch.zeros(B, M, dtype=torch.bool)
    mask[0, :5], mask[2, 3] = True, True
    return mask


def far_bias() -> torch.Tensor:
    bias = tokens(B, M)
    bias[1, 4] = -torch.inf
    return bias


@pytest.mark.parametrize("bias", [None, tokens, far_bias], ids=["no bias", "bias", "a key infinitely far"])
@pytest.mark.parametrize("mask", [None, masked], ids=["all", "masked"])
@pytest.mark.parametrize("own", [None, torch.tensor([0, 3, -1, 10, 5, -1, 1])], ids=["others", "own excluded"])
@pytest.mark.parametrize("stable", [False, True])
def test_nearest(bias, mask, own, stable) -> None:
    torch.manual_seed(0)
    query, key = tokens(B, N, C), tokens(B, M, C)
    given = None if bias is None else bias(B, M) if bias is tokens else bias()
    arguments = (query, key, given, None if mask is None else mask(), own, K, stable)
    assert torch.equal(nearest.plain_nearest(*arguments), nearest.nearest(*arguments))


@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize("mask", [None, masked], ids=["all", "masked"])
@pytest.mark.parametrize("own", [None, torch.tensor([0, 3, -1, 10, 5, -1, 1])], ids=["others", "own excluded"])
@pytest.mark.parametrize("stable", [False, True])
def test_nearest_euclidean(blended, mask, own, stable) -> None:
    torch.manual_seed(0)
    query, key = tokens(B, N, C).float() + 1e5, tokens(B, M, C).float() + 1e5
    key[1, 4], key[2, 3] = torch.inf, torch.nan  # a key infinitely far, and one that is masked where masks are given
    key[2, 3] = key[2, 3] if mask else 0
    blend = (tokens(B, 1, 1).abs().float(), tokens(N, 2), tokens(M, 2)) if blended else (None, None, None)
    arguments = (query, key, *blend, None if mask is None else mask(), own, K, stable)
    assert torch.equal(euclidean.plain_nearest_euclidean(*arguments), euclidean.nearest_euclidean(*arguments))


def test_nearest_takes_equal_keys_lowest_first() -> None:
    key = tokens(1, 3, C).repeat(1, 4, 1)
    found = nearest.plain_nearest(tokens(1, N, C), key, None, None, None, 8, True)
    order = found.view(1, N, 2, 4)
    assert torch.equal(order, order.sort(-1).values), "four copies of a key follow each other, in their order"
    assert torch.equal(order % 3, (order % 3)[..., :1].expand_as(order))


@pytest.mark.parametrize("rho", [None, tokens], ids=["ones", "weighted"])
def test_bag_sum(rho) -> None:
    table, rows, weight = tokens(B, M, C), index(), None if rho is None else rho(B, N, K)
    torch.testing.assert_close(bags.plain_bag_sum(table, rows, weight), bags.bag_sum(table, rows, weight))


@pytest.mark.parametrize("rho", [None, tokens], ids=["ones", "weighted"])
@pytest.mark.parametrize(("groups", "out"), [(1, 5), (2, 8), (C, C), (C, 2 * C)])
def test_slot_mix(rho, groups, out) -> None:
    value, weight, rows = tokens(B, M, C), tokens(out, C // groups, K), index()
    arguments = (value, weight, rows, None if rho is None else rho(B, N, K), groups)
    torch.testing.assert_close(slots.plain_slot_mix(*arguments), slots.slot_mix(*arguments))


def test_pairs() -> None:
    query, table, rows = tokens(B, N, C), tokens(B, M, C), index()
    torch.testing.assert_close(bags.plain_pair_product(query, table, rows), bags.pair_product(query, table, rows))
    torch.testing.assert_close(bags.plain_pair_distance(query, table, rows), bags.pair_distance(query, table, rows))


@pytest.mark.parametrize("query_grid", [[2, 4, 2, 4, 0, 0, 1, 1], [3, 3, 1, 2, 1, 1, 1, 1]], ids=["whole", "inside"])
@pytest.mark.parametrize("slots", [3, 0])
@pytest.mark.parametrize("by_channels", [False, True])
def test_sampled_mix(query_grid: list[int], slots: int, by_channels: bool) -> None:
    value, matrices = tokens(B, query_grid[0] * query_grid[1], C), tokens(slots + 1, 4, C)
    positions = torch.randint(0, 3, (B, query_grid[2] * query_grid[3], slots))
    for bias in (None, matrices[0, :, 0]):
        arguments = (value, matrices, bias, torch.tensor([0, -1, 2]), positions, query_grid, by_channels)
        ours, theirs = sampled.plain_sampled_mix(*arguments), sampled.sampled_mix(*arguments)
        torch.testing.assert_close(ours, theirs)
        assert ours.stride() == theirs.stride()
