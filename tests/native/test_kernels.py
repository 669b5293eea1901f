"""The kernels of every level: neighbours equal to those in float64, sums within the bound of their roundings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from convnn import native
from convnn.ops.bags import plain_bag_scatter, plain_bag_sum, plain_pair_distance, plain_pair_product
from convnn.ops.euclidean import plain_nearest_euclidean
from convnn.ops.native import (
    native_bag_scatter,
    native_bag_sum,
    native_nearest,
    native_nearest_euclidean,
    native_pair_distance,
    native_pair_product,
    native_sampled_mix,
    native_sampled_mix_backward,
    native_slot_mix,
    native_slot_mix_backward,
)
from convnn.ops.nearest import plain_nearest
from convnn.ops.sampled import plain_sampled_mix, plain_sampled_mix_backward
from convnn.ops.slots import plain_slot_mix, plain_slot_mix_backward

from .data import LEVELS, assert_sums, layouts, not_finite, of_any_size, whole_numbers

pytestmark = pytest.mark.skipif(not LEVELS, reason=f"needs the native library: {native.why_not()}")


@pytest.fixture(params=LEVELS, autouse=True)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.at_level(request.param):
        yield request.param


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# B, queries, keys, channels, k: tiles that are cut at every side, one key, more keys than are scored at once, the most
# neighbours, fewer keys that may be chosen than neighbours.
SIZES = [(2, 50, 50, 3, 4), (1, 200, 200, 64, 9), (1, 37, 300, 17, 31), (1, 15, 8300, 5, 9)]
SIZES += [(3, 1, 1, 1, 1), (1, 20, 40, 6, 32)]
# B, values, C_in, C_out, k; the last has more outputs than are worked on at a time.
MATRICES = [(2, 50, 20, 7, 3), (3, 37, 64, 64, 9), (1, 200, 300, 33, 4), (2, 9, 40, 70, 12), (1, 30, 8, 1001, 4)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("draw", [whole_numbers, not_finite])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_search(sizes, draw):
    """Ties take the lowest index, NaN comes first, and excluded keys come last."""
    torch.manual_seed(1)
    batch, queries, keys, channels, k = sizes
    query, key = draw(batch, queries, channels), draw(batch, keys, channels)
    bias = whole_numbers(batch, keys).masked_fill(torch.rand(batch, keys) < 0.2, -torch.inf)
    skips = [None, torch.arange(queries) - 1]
    for some, masked, skip in itertools.product([None, bias], [None, torch.rand(batch, keys) < 0.4], skips):
        expected = plain_nearest(query.double(), key.double(), some, masked, skip, k, True)
        for q, x in zip(layouts(query), layouts(key), strict=True):
            assert torch.equal(native_nearest(q, x, some, masked, skip, k, True), expected)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_search_by_any_number(dtype):
    """Up to pairs that differ by a rounding of the sum."""
    query, key = torch.randn(2, 70, 33).to(dtype), torch.randn(2, 500, 33).to(dtype)
    found = native_nearest(query, key, None, None, None, 9, False)
    scores = query.double() @ key.double().transpose(1, 2)
    best = scores.topk(9).values
    torch.testing.assert_close(scores.gather(2, found), best, rtol=0, atol=33 * 2**-23 * 50)


DATA = {
    "random": lambda *shape: torch.randn(shape),
    "far away": lambda *shape: torch.randn(shape) + 1e4,
    "clusters": lambda *shape: torch.randn(shape) + torch.randint(0, 5, (shape[0], shape[1], 1)) * 1e7,
    "very short": lambda *shape: torch.randn(shape) * 1e-30,
    "very long": lambda *shape: torch.randn(shape) * 1e30,
    "of 12 magnitudes": lambda *shape: torch.randn(shape) * 10 ** (torch.rand(shape[0], shape[1], 1) * 12 - 6),
    "whole numbers": whole_numbers,
    "of any size": of_any_size,
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_euclidean_search(sizes, name):
    """The neighbours of the float64 distances, but for pairs whose distances differ by a rounding of float64."""
    torch.manual_seed(2)
    batch, queries, keys, channels, k = sizes
    key = DATA[name](batch, keys, channels)
    query = key[:, :queries] if queries <= keys else DATA[name](batch, queries, channels)
    positions = (torch.rand(batch, 1, 1), torch.rand(queries, 2), torch.rand(keys, 2))
    skips = [None, torch.arange(queries)]
    masks = [None, torch.rand(batch, keys) < 0.3]
    for given, masked, skip in itertools.product([(None,) * 3, positions], masks, skips):
        expected = plain_nearest_euclidean(query, key, *given, masked, skip, k, True)
        found = native_nearest_euclidean(query, key, *given, masked, skip, k, True)
        if torch.equal(found, expected):
            continue
        wide = torch.cdist(query.double(), key.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
        if given[0] is not None:
            wide = wide * given[0].double() ** 2 + torch.cdist(given[1].double(), given[2].double()).square()
        torch.testing.assert_close(wide.gather(2, found), wide.gather(2, expected), rtol=1e-14, atol=0, equal_nan=True)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", MATRICES, ids=str)
def test_slot_matrices_and_their_gradients(sizes, weighted, dtype):
    batch, tokens, channels, out, k = sizes
    value, weight = torch.randn(batch, tokens, channels).to(dtype), torch.randn(out, channels, k).to(dtype)
    index = torch.randint(0, tokens, (batch, tokens + 5, k))
    index[:, ::3, 0] = 1  # a token that many queries chose
    rho = torch.rand(index.shape).to(dtype) if weighted else None
    grad = torch.randn(batch, tokens + 5, out).to(dtype)
    wide = [None if x is None else x.double() for x in (grad, value, weight, rho)]
    sizes_of = [None if x is None else x.abs() for x in wide]
    exact, size = (plain_slot_mix(x[1], x[2], index, x[3], 1) for x in (wide, sizes_of))
    gradients, gradient_sizes = (plain_slot_mix_backward(*x[:3], index, x[3], 1) for x in (wide, sizes_of))
    transposed = weight.transpose(0, 1).contiguous().transpose(0, 1)
    terms = (k * out + index[0].numel(), 2 * batch * index[0].numel(), out + channels)
    for x, g, w in zip(layouts(value), layouts(grad), [weight, transposed, weight], strict=True):
        assert_sums(native_slot_mix(x, w, index, rho, 1), exact, size, 2 * k * channels)
        actual = native_slot_mix_backward(g, x, w, index, rho, 1)
        for result in zip(actual, gradients, gradient_sizes, terms, strict=True):
            assert_sums(*result)


def test_an_expanded_gradient():
    value, weight = torch.randn(2, 30, 8), torch.randn(5, 8, 3)
    index, grad = torch.randint(0, 30, (2, 30, 3)), torch.ones(1).expand(2, 30, 5)
    expected = plain_slot_mix_backward(grad.double(), value.double(), weight.double(), index, None, 1)
    actual = native_slot_mix_backward(grad, value, weight, index, None, 1)
    torch.testing.assert_close(actual[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual[1].double(), expected[1], rtol=1e-5, atol=1e-4)


def test_repeatable():
    """Not even the last bit depends on the moment: the owner of a sum adds in order."""
    value, weight, index = torch.randn(2, 300, 32), torch.randn(16, 32, 9), torch.randint(0, 300, (2, 300, 9))
    grad = torch.randn(2, 300, 16)
    first = native_slot_mix_backward(grad, value, weight, index, None, 1)
    for _ in range(5):
        again = native_slot_mix_backward(grad, value, weight, index, None, 1)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# B, queries, rows, C, k: vectors that are cut, more queries and channels than are scattered at a time, one of each.
BAGS = [(2, 50, 30, 7, 3), (1, 150, 90, 130, 9), (3, 1, 1, 1, 1), (1, 70, 40, 64, 4)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", BAGS, ids=str)
def test_sums_of_rows_and_products_of_pairs(sizes, weighted, dtype):
    batch, queries, rows, channels, k = sizes
    table, source = torch.randn(batch, rows, channels).to(dtype), torch.randn(batch, queries, channels).to(dtype)
    index = torch.randint(0, rows, (batch, queries, k))
    index[:, ::3, 0] = 0  # a row that many queries chose
    weight = torch.randn(index.shape).to(dtype) if weighted else None
    for t, s in zip(layouts(table), layouts(source), strict=True):
        for native_form, plain, tokens, rest, terms in (
            (native_bag_sum, plain_bag_sum, (t,), (index, weight), k),
            (native_bag_scatter, plain_bag_scatter, (s,), (index, weight, rows), queries * k),
            (native_pair_product, plain_pair_product, (s, t), (index,), channels),
            (native_pair_distance, plain_pair_distance, (s, t), (index,), 3 * channels),
        ):
            wide, sizes_of = ([None if x is None else x.double() for x in given] for given in (tokens, tokens))
            others = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in rest]
            exact = plain(*wide, *others)
            absolute = [x.abs() if isinstance(x, Tensor) and x.is_floating_point() else x for x in others]
            signs = [1, -1] if plain is plain_pair_distance else [1, 1]  # |q - t| is at most |q| + |t|
            size = plain(*(sign * x.abs() for sign, x in zip(signs, sizes_of, strict=False)), *absolute)
            assert_sums(native_form(*tokens, *rest), exact, size, terms)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("channels", "out", "groups"), [(70, 70, 70), (12, 6, 3), (6, 12, 6)])
@pytest.mark.parametrize("weighted", [False, True])
def test_slot_matrices_in_groups(channels, out, groups, weighted):
    value, weight = torch.randn(2, 300, channels), torch.randn(out, channels // groups, 5)
    index, grad = torch.randint(0, 300, (2, 310, 5)), torch.randn(2, 310, out)
    rho = torch.rand(index.shape) if weighted else None
    wide = [None if x is None else x.double() for x in (grad, value, weight, rho)]
    size = [None if x is None else x.abs() for x in wide]
    exact, bound = (plain_slot_mix(x[1], x[2], index, x[3], groups) for x in (wide, size))
    gradients, bounds = (plain_slot_mix_backward(*x[:3], index, x[3], groups) for x in (wide, size))
    for x, g in zip(layouts(value), layouts(grad), strict=True):
        assert_sums(native_slot_mix(x, weight, index, rho, groups), exact, bound, 10 * channels)
        for result in zip(native_slot_mix_backward(g, x, weight, index, rho, groups), gradients, bounds, strict=True):
            assert_sums(*result, 2 * 310 * 5)


GRIDS = {"whole": [6, 9, 6, 9, 0, 0, 1, 1], "inside": [6, 9, 2, 4, 2, 3, 1, 1], "thinned": [6, 9, 3, 3, 1, 0, 2, 3]}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("others", [0, 4])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_few_candidates(grid, others, channels_first):
    value, slots, bias = torch.randn(3, 54, 20), torch.randn(others + 1, 33, 20), torch.randn(33)
    queries, candidates = grid[2] * grid[3], torch.tensor([3, -1, 53, 7, -1, 20])
    index, grad = torch.randint(0, 6, (3, queries, others)), torch.randn(3, queries, 33)
    rest = (candidates, index, grid, channels_first)
    wide = [x.double() for x in (value, slots, bias, grad)]
    size = [x.abs() for x in wide]
    exact, bound = (plain_sampled_mix(*x[:3], *rest) for x in (wide, size))
    gradients, bounds = (plain_sampled_mix_backward(x[3], x[0], x[1], *rest, True) for x in (wide, size))
    for x, g in zip(layouts(value), layouts(grad), strict=True):
        found = native_sampled_mix(x, slots, bias, *rest)
        assert found.stride() == exact.stride()
        assert_sums(found, exact, bound, 2 * (others + 1) * 20)
        for result in zip(native_sampled_mix_backward(g, x, slots, *rest, True), gradients, bounds, strict=True):
            assert_sums(*result, 2 * 3 * queries * (others + 1))
        assert native_sampled_mix_backward(g, x, slots, *rest, False)[0].numel() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_kernels(dtype):
    """Their products are in float32 at the addresses of float32 tensors."""
    value, slots = torch.randn(2, 54, 20), torch.randn(3, 8, 20)
    rest = (None, torch.tensor([3, 5]), torch.randint(0, 2, (2, 54, 2)), GRIDS["whole"], False)
    expected = native_sampled_mix(value, slots, *rest)
    with torch.autocast("cpu", dtype):
        assert torch.equal(native_sampled_mix(value, slots, *rest), expected)


def test_sums_do_not_depend_on_the_number_of_threads():
    source, index = torch.randn(1, 500, 40), torch.randint(0, 50, (1, 500, 9))
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        found.append(native_bag_scatter(source, index, None, 50))
    torch.set_num_threads(before)
    assert all(torch.equal(x, found[0]) for x in found)


@pytest.mark.parametrize("wrong", [-1, 7, 2**40])
def test_an_index_of_no_row_is_refused(wrong):
    """A compiled program does not check the neighbours that it is given, and a kernel must not read elsewhere."""
    table, index, slots = torch.randn(1, 7, 4), torch.tensor([[[0, 6], [wrong, 1]]]), torch.randn(3, 5, 4)
    weight, grid = torch.randn(5, 4, 2), [1, 7, 1, 2, 0, 0, 1, 1]
    for run in (
        lambda: native_bag_sum(table, index, None),
        lambda: native_bag_scatter(table[:, :2], index, None, 7),
        lambda: native_pair_product(table[:, :2], table, index),
        lambda: native_pair_distance(table[:, :2], table, index),
        lambda: native_slot_mix(table, weight, index, None, 1),
        lambda: native_slot_mix(table, weight[:4, :1].contiguous(), index, None, 4),
        lambda: native_slot_mix_backward(torch.randn(1, 2, 5), table, weight, index, None, 1),
        lambda: native_sampled_mix(table, slots, None, torch.arange(7), index, grid, False),
        lambda: native_sampled_mix_backward(
            torch.randn(1, 2, 5), table, slots, torch.arange(7), index, grid, False, True
        ),
    ):
        with pytest.raises(IndexError, match="neighbours count tokens of the keys from 0"):
            run()
