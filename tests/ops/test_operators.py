"""The custom operators: against gathers written out, their derivatives, and torch's own checks of such operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convnn.ops import nearest as nearest_module
from convnn.ops import product as product_module
from convnn.ops.bags import bag_scatter, bag_sum, invert, pair_distance, pair_product
from convnn.ops.euclidean import nearest_euclidean
from convnn.ops.nearest import nearest
from convnn.ops.product import column_product, columns, linear, map_column_product, map_product, product
from convnn.ops.sampled import in_steps, sampled_mix, sampled_mix_backward
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


@pytest.mark.parametrize("most_keys", [1 << 13, 256, 100])
@pytest.mark.parametrize("tile", [1 << 19, 1 << 11])
@pytest.mark.parametrize("keys", [40, 700, 3001])
@pytest.mark.parametrize("stable", [True, False])
def test_tiles_and_merging_do_not_change_the_search(
    keys: int, most_keys: int, tile: int, stable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest_module, "_MOST_KEYS", most_keys)
    monkeypatch.setattr(nearest_module, "_TILE_ELEMENTS", tile)
    query, key, bias = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 50, 8), (2, keys, 8), (2, keys)))
    masked, own = torch.rand(2, keys) < 0.3, torch.randint(-1, keys, (50,))
    scores = (query @ key.transpose(1, 2) + bias.unsqueeze(1)).masked_fill(masked.unsqueeze(1), -torch.inf)
    for n, place in enumerate(own.tolist()):
        if place >= 0:
            scores[:, n, place] = -torch.inf
    assert torch.equal(nearest(query, key, bias, masked, own, 9, stable), scores.topk(9).indices)


def test_a_stable_search_takes_equal_keys_in_order_wherever_they_stand() -> None:
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


def test_the_fast_product_is_the_product() -> None:
    x, y = torch.randn(300, 160), torch.randn(200, 160)
    expected = (x.double() @ y.double().t()).float()
    torch.testing.assert_close(product(x, y), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(product(x.t()[:160].t(), y), expected, rtol=1e-5, atol=1e-4)
    wide = torch.empty(200, 160, 3)  # rows whose elements are apart, as one slot of a weight is
    wide[:, :, 1] = y
    torch.testing.assert_close(product(x, wide[:, :, 1]), expected, rtol=1e-5, atol=1e-4)
    bias = torch.randn(200)
    torch.testing.assert_close(product(x, y, bias), expected + bias, rtol=1e-5, atol=1e-4)


def test_the_product_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(300, 160), torch.randn(200, 160)
    fast = product(x, y)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not product_module._goes_to_onednn(x, y)
        torch.testing.assert_close(product(x, y), fast, rtol=1e-5, atol=1e-4)
    assert product_module._goes_to_onednn(x, y) == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(product_module, "_inner_product", None)  # a build of torch that has no such door
    assert not product_module._goes_to_onednn(x, y)
    torch.testing.assert_close(product(x, y), fast, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [3, 900])  # below and above the size from which oneDNN is worth it
def test_linear_and_its_derivatives(rows: int) -> None:
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((rows, 40), (30, 40), (30,)))
    doubles = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    results = []
    for inputs, apply in (((x, weight, bias), linear), (doubles, torch.nn.functional.linear)):
        y = apply(*inputs)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
        results.append([y, *first, *second])
    for ours, exact in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.detach().abs().amax()))


@pytest.mark.parametrize(("rows", "width", "height"), [(900, 40, 30), (900, 64, 64), (20, 300, 200), (3, 2, 2)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("wide", [False, True])
def test_columns_and_their_derivatives(
    rows: int, width: int, height: int, threads: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_module, "_WIDE_VECTORS", wide)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, y = torch.randn(rows, width, requires_grad=True), torch.randn(rows, height, requires_grad=True)
        exact = [t.detach().double().requires_grad_() for t in (x, y)]
        results = []
        for inputs, apply in (((x, y), columns), (exact, lambda a, b: a.t() @ b)):
            out = apply(*inputs)
            first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)
            results.append([out, *first, *second])
        for ours, expected in zip(*results, strict=True):
            atol = 1e-4 * float(expected.detach().abs().amax())
            torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=atol)
        torch.testing.assert_close(
            column_product(x.detach(), y.detach()), x.detach().t() @ y.detach(), rtol=1e-4, atol=1e-3
        )
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    "shape", [(3, 40, 900), (1, 3, 2), (0, 40, 900)]
)  # the first goes to oneDNN where it is faster
def test_products_of_maps(shape: tuple[int, int, int], wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_module, "_WIDE_VECTORS", wide)
    x, y, bias = torch.randn(shape), torch.randn(shape[0], 30, shape[2]), torch.randn(30)
    for matrix in (torch.randn(30, shape[1]), torch.randn(shape[1], 30).t()):
        exact = torch.einsum("oc,bcn->bon", matrix.double(), x.double())
        torch.testing.assert_close(map_product(x, matrix), exact.float(), rtol=1e-5, atol=1e-4)
        with_bias = (exact + bias.double().view(1, -1, 1)).float()
        torch.testing.assert_close(map_product(x, matrix, bias), with_bias, rtol=1e-5, atol=1e-4)
    sums = torch.einsum("bon,bcn->oc", y.double(), x.double()).float()
    for given in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):  # maps, and tokens
        torch.testing.assert_close(map_column_product(y, given), sums, rtol=1e-4, atol=1e-3)


LATTICES = {"whole": [2, 3, 2, 3, 0, 0, 1, 1], "inside": [3, 4, 1, 2, 1, 1, 1, 1], "thinned": [4, 3, 2, 2, 0, 0, 2, 2]}


KEYS = {"on the map": [0, 3, 5], "one outside": [-1, 2, 4], "some outside": [-1, 2, -1, 4], "all outside": [-1] * 3}


def of_lattice(lattice: list[int]) -> list[int]:
    """The positions of the queries, row by row."""
    return [
        (lattice[4] + row * lattice[6]) * lattice[1] + lattice[5] + column * lattice[7]
        for row in range(lattice[2])
        for column in range(lattice[3])
    ]


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("slots", [2, 0])
@pytest.mark.parametrize("by_channels", [False, True])
def test_sampled_mix_and_its_derivatives(name: str, keys: list[int], slots: int, by_channels: bool) -> None:
    lattice, own = LATTICES[name], of_lattice(LATTICES[name])
    places = torch.randint(0, len(keys), (2, len(own), slots))
    inputs = (real(2, lattice[0] * lattice[1], C), real(slots + 1, 4, C), real(4))

    def ours(value: Tensor, matrices: Tensor, bias: Tensor) -> Tensor:
        return sampled_mix(value, matrices, bias, torch.tensor(keys), places, lattice, by_channels)

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
    steps = in_steps(inputs[0], inputs[1], torch.tensor(keys), places, lattice) + inputs[2]
    torch.testing.assert_close(steps, ours(*inputs), rtol=1e-12, atol=1e-12)


def test_candidates_outside_the_map_meet_the_matrices_once() -> None:
    value, slots = torch.randn(2, 6, 32), torch.randn(3, 64, 32)
    keys, places = torch.tensor([0, -1, -1, 3, -1, -1]), torch.randint(0, 6, (2, 6, 2))
    with torch.profiler.profile(record_shapes=True) as run:
        sampled_mix(value, slots, None, keys, places, LATTICES["whole"], False)
    assert [2 * 3, 32] in [event.input_shapes[0] for event in run.events() if event.name == "aten::linear"]


@pytest.mark.parametrize("by_channels", [False, True])
def test_sampled_mix_makes_no_gradient_that_nobody_wants(by_channels: bool) -> None:
    value, slots = real(2, 6, C).detach(), real(3, 4, C)
    rest = (torch.tensor([0, 3]), torch.randint(0, 2, (2, 6, 2)), LATTICES["whole"], by_channels)
    out = sampled_mix(value, slots, None, *rest)
    in_value, in_slots = sampled_mix_backward(torch.ones_like(out), value, slots.detach(), *rest, False)
    assert in_value.numel() == 0
    assert torch.equal(torch.autograd.grad(out.sum(), slots)[0], in_slots)


@pytest.mark.parametrize("choices", [100, 5000, 40000])  # compared, padded to be sorted by digits, sorted by digits
def test_an_inverse_lists_who_chose_each_row(choices: int) -> None:
    index = torch.randint(0, 300, (2, choices // 8, 4))
    index[0, 3] = 299
    inverse = invert(index, 300)
    flat = (index + torch.tensor([0, 300]).view(2, 1, 1)).flatten()
    starts = [0, *inverse.ends[:-1].tolist()]
    for row in (0, 17, 299, 300, 599):
        found = inverse.order[starts[row] : inverse.ends[row]].tolist()
        assert found == (flat == row).nonzero().flatten().tolist()
    assert inverse.order.sort().values.equal(torch.arange(flat.numel()))


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
        (product_module._linear, (query[0], weight[:, :, 0], None)),
        (product_module._columns, (query[0], table[0, :N])),
        *[(sampled_mix, (table[:, :6], slots, weight[:, 0, 0], torch.tensor([-1, 4]), *sampled, by)) for by in layouts],
        *[
            (sampled_mix_backward, (grad, table[:, :6].detach(), slots, torch.tensor([1, 4]), *sampled, by, of_value))
            for by in layouts
            for of_value in (True, False)
        ],
    ):
        result = torch.library.opcheck(operator, arguments, raise_exception=False)
        assert set(result.values()) == {"SUCCESS"}, (operator, result)
