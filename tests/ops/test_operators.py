"""The custom operators: against gathers written out, their derivatives, and torch's own checks of such operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convnn.ops.bags import bag_scatter, bag_sum, pair_distance, pair_product
from convnn.ops.euclidean import nearest_euclidean
from convnn.ops.nearest import nearest
from convnn.ops.sampled import sampled_mix, sampled_mix_backward
from convnn.ops.slots import slot_mix, slot_mix_backward

B, M, N, C, K = 2, 7, 5, 3, 4


def real(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def chosen() -> Tensor:
    """Positions with repetitions: a row chosen by many, and rows chosen by nobody."""
    return torch.randint(0, M - 2, (B, N, K))


def gathered(table: Tensor, index: Tensor) -> Tensor:
    return torch.stack([rows[places] for rows, places in zip(table, index, strict=True)])


def scattered(source: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros(B, M, C, dtype=source.dtype)
    for b, n, m in torch.cartesian_prod(torch.arange(B), torch.arange(N), torch.arange(K)).tolist():
        place = index[b, n, m]
        out = out.index_put((torch.tensor(b), place), weight[b, n, m] * source[b, n], accumulate=True)
    return out


CASES: dict[str, Callable[[Tensor], tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]]] = {
    "bag_sum": lambda i: (
        lambda t, w: bag_sum(t, i, w),
        lambda t, w: (gathered(t, i) * w.unsqueeze(-1)).sum(2),
        (real(B, M, C), real(B, N, K)),
    ),
    "bag_sum of ones": lambda i: (
        lambda t: bag_sum(t, i, None),
        lambda t: gathered(t, i).sum(2),
        (real(B, M, C),),
    ),
    "bag_scatter": lambda i: (
        lambda s, w: bag_scatter(s, i, w, M),
        lambda s, w: scattered(s, i, w),
        (real(B, N, C), real(B, N, K)),
    ),
    "pair_product": lambda i: (
        lambda q, t: pair_product(q, t, i),
        lambda q, t: (gathered(t, i) * q.unsqueeze(2)).sum(-1),
        (real(B, N, C), real(B, M, C)),
    ),
    "pair_distance": lambda i: (
        lambda q, t: pair_distance(q, t, i),
        lambda q, t: (gathered(t, i) - q.unsqueeze(2)).square().sum(-1),
        (real(B, N, C), real(B, M, C)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_first_and_second_derivatives(name: str) -> None:
    operator, written_out, inputs = CASES[name](chosen())
    torch.testing.assert_close(operator(*inputs), written_out(*inputs), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(operator, inputs)
    assert torch.autograd.gradgradcheck(operator, inputs)


@pytest.mark.parametrize(("width", "out", "groups"), [(6, 4, 1), (6, 4, 2), (6, 6, 6), (6, 12, 6)])
@pytest.mark.parametrize("weighted", [True, False])
def test_slot_mix_and_its_derivatives(width: int, out: int, groups: int, weighted: bool) -> None:
    index = chosen()
    value, weight, rho = real(B, M, width), real(out, width // groups, K), real(B, N, K)

    def operator(v: Tensor, w: Tensor, r: Tensor) -> Tensor:
        return slot_mix(v, w, index, r if weighted else None, groups)

    def written_out(v: Tensor, w: Tensor, r: Tensor) -> Tensor:
        neighbours = gathered(v, index) * (r.unsqueeze(-1) if weighted else 1)
        laid_out = neighbours.permute(0, 3, 1, 2).flatten(2)
        return torch.nn.functional.conv1d(laid_out, w, stride=K, groups=groups).transpose(1, 2)

    inputs = (value, weight, rho)
    torch.testing.assert_close(operator(*inputs), written_out(*inputs), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(operator, inputs)
    assert torch.autograd.gradgradcheck(operator, inputs)


def test_a_stable_search_takes_equal_keys_in_order_at_every_position() -> None:
    tokens = torch.randn(5, 16).repeat(1, 400, 1)
    found = nearest(tokens[:, :40], tokens, None, None, None, 30, True)
    best = (tokens[0, :5] @ tokens[0, :5].t()).argmax(1)
    expected = torch.stack([best[n % 5] + 5 * torch.arange(30) for n in range(40)])
    assert torch.equal(found[0], expected)


def test_a_real_score_of_minus_infinity_beats_an_excluded_key() -> None:
    query = key = torch.ones(1, 3, 2)
    bias = torch.tensor([[0.0, -torch.inf, 0.0]])
    masked = torch.tensor([[False, False, True]])
    assert nearest(query, key, bias, masked, None, 2, False).tolist() == [[[0, 1]] * 3]


QUERY_GRIDS = {
    "whole": [2, 3, 2, 3, 0, 0, 1, 1],
    "inside": [3, 4, 1, 2, 1, 1, 1, 1],
    "thinned": [4, 3, 2, 2, 0, 0, 2, 2],
}


KEYS = {"on the map": [0, 3, 5], "one outside": [-1, 2, 4], "some outside": [-1, 2, -1, 4], "all outside": [-1] * 3}


def positions_of(query_grid: list[int]) -> list[int]:
    """The positions of the queries, row by row."""
    return [
        (query_grid[4] + row * query_grid[6]) * query_grid[1] + query_grid[5] + column * query_grid[7]
        for row in range(query_grid[2])
        for column in range(query_grid[3])
    ]


# Every pair of a grid and candidates, and with each of them both numbers of slots and both layouts.
SAMPLED = [
    (name, keys, 0 if (i + j) % 3 == 0 else 2, (i + j) % 2 == 0)
    for i, name in enumerate(QUERY_GRIDS)
    for j, keys in enumerate(KEYS.values())
]


@pytest.mark.parametrize(("name", "keys", "slots", "by_channels"), SAMPLED)
def test_sampled_mix_and_its_derivatives(name: str, keys: list[int], slots: int, by_channels: bool) -> None:
    query_grid, own = QUERY_GRIDS[name], positions_of(QUERY_GRIDS[name])
    places = torch.randint(0, len(keys), (2, len(own), slots))
    inputs = (real(2, query_grid[0] * query_grid[1], C), real(slots + 1, 4, C), real(4))

    def ours(value: Tensor, matrices: Tensor, bias: Tensor) -> Tensor:
        return sampled_mix(value, matrices, bias, torch.tensor(keys), places, query_grid, by_channels)

    def written_out(value: Tensor, matrices: Tensor, bias: Tensor) -> Tensor:
        out = value[:, own] @ matrices[0].t() + bias
        token = [value[:, key] if key >= 0 else torch.zeros_like(value[:, 0]) for key in keys]
        candidates = torch.stack(token, dim=1)
        for m in range(slots):
            chosen = torch.stack([rows[at] for rows, at in zip(candidates, places[..., m], strict=True)])
            out = out + chosen @ matrices[1 + m].t()
        return out

    torch.testing.assert_close(ours(*inputs), written_out(*inputs), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(ours, inputs)
    assert torch.autograd.gradgradcheck(ours, inputs)


@pytest.mark.parametrize("by_channels", [False, True])
def test_sampled_mix_makes_no_gradient_that_nobody_wants(by_channels: bool) -> None:
    value, slots = real(2, 6, C).detach(), real(3, 4, C)
    rest = (torch.tensor([0, 3]), torch.randint(0, 2, (2, 6, 2)), QUERY_GRIDS["whole"], by_channels)
    out = sampled_mix(value, slots, None, *rest)
    in_value, in_slots = sampled_mix_backward(torch.ones_like(out), value, slots.detach(), *rest, False)
    assert in_value.numel() == 0
    assert torch.equal(torch.autograd.grad(out.sum(), slots)[0], in_slots)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_finds_nothing_wrong_with_the_operators(dtype: torch.dtype) -> None:
    index, table, query, rho = chosen(), real(B, M, C), real(B, N, C), real(B, N, K)
    weight = real(6, C, K)
    table, query, rho, weight = (x.detach().to(dtype).requires_grad_() for x in (table, query, rho, weight))
    sampled = (torch.randint(0, 2, (B, 2, K - 1)), [2, 3, 2, 1, 0, 1, 1, 2])
    slots, layouts = weight.detach().permute(2, 0, 1).contiguous(), (False, True)
    grad = query.detach().new_ones(B, 2, 6)
    blends = ((None, None, None), (torch.ones(B, 1, 1), torch.rand(N, 2), torch.rand(M, 2)))
    for operator, arguments in (
        (bag_sum, (table, index, rho)),
        (bag_sum, (table, index, None)),
        (bag_scatter, (query, index, rho, M)),
        (pair_product, (query, table, index)),
        (pair_distance, (query, table, index)),
        (slot_mix, (table, weight, index, rho, 1)),
        (slot_mix_backward, (query.new_ones(B, N, 6), table.detach(), weight.detach(), index, None, 1)),
        (nearest, (query.detach(), table.detach(), None, None, None, 3, False)),
        *[(nearest_euclidean, (query.detach(), table.detach(), *blend, None, None, 3, False)) for blend in blends],
        *[(sampled_mix, (table[:, :6], slots, weight[:, 0, 0], torch.tensor([-1, 4]), *sampled, by)) for by in layouts],
        *[
            (sampled_mix_backward, (grad, table[:, :6].detach(), slots, torch.tensor([1, 4]), *sampled, by, of_value))
            for by in layouts
            for of_value in (True, False)
        ],
    ):
        result = torch.library.opcheck(operator, arguments, raise_exception=False)
        assert set(result.values()) == {"SUCCESS"}, (operator, result)
