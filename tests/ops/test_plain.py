"""The plain forms of the custom operators and their kernels compute the same."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


class LookedUp(TorchDispatchMode):
    """Records the type of the indices by which rows are read or added."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.embedding.default, torch.ops.aten.index_add_.default):
            self.types.add(args[1 if func is torch.ops.aten.embedding.default else 2].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("run", [
    lambda: bags.plain_bag_sum(tokens(B, M, C), index(), None),
    lambda: bags.plain_bag_scatter(tokens(B, N, C), index(), None, M),
    lambda: bags.plain_pair_product(tokens(B, N, C), tokens(B, M, C), index()),
    lambda: slots.plain_slot_mix(tokens(B, M, C), tokens(5, C, K), index(), None, 1),
])  # fmt: skip
def test_rows_are_numbered_in_int32_where_they_fit(run) -> None:
    with LookedUp() as looked_up:
        run()
    assert looked_up.types == {torch.int32}
    assert bags.index_dtype(2**31 - 1) == torch.int32
    assert bags.index_dtype(2**31) == torch.int64
