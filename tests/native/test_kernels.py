"""The kernels of every level: neighbours equal to those in float64, sums within the bound of their roundings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from convnn import native
from convnn.ops.euclidean import plain_nearest_euclidean
from convnn.ops.native import (
    native_nearest,
    native_nearest_euclidean,
    native_slot_mix,
    native_slot_mix_backward,
)
from convnn.ops.nearest import plain_nearest
from convnn.ops.slots import plain_slot_mix, plain_slot_mix_backward

LEVELS = [name for name, reason in native.levels().items() if reason is None]
INFINITY = float("inf")

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


def whole_numbers(*shape: int) -> Tensor:
    """Products of these are exact, and many are equal."""
    return torch.randint(-2, 3, shape).float()


def scatter(x: Tensor, *values: float) -> Tensor:
    """Put some values among the others."""
    for value in values:
        x[torch.rand(x.shape) < 0.3 / x[0].numel() ** 0.9] = value
    return x


def not_finite(*shape: int) -> Tensor:
    return scatter(whole_numbers(*shape), float("nan"), INFINITY, -INFINITY, -0.0)


def of_any_size(*shape: int) -> Tensor:
    """Squares of these overflow, or vanish, in float32."""
    return scatter(not_finite(*shape), 3e38, 1e-40)


def layouts(x: Tensor) -> list[Tensor]:
    """The same tokens as rows, as an NCHW map, and as a part of wider rows."""
    return [x, x.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([x, x], 2)[..., : x.shape[2]]]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("draw", [whole_numbers, not_finite])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_search(sizes, draw):
    """Ties take the lowest index, NaN comes first, and excluded keys come last."""
    torch.manual_seed(1)
    batch, queries, keys, channels, k = sizes
    query, key = draw(batch, queries, channels), draw(batch, keys, channels)
    bias = whole_numbers(batch, keys).masked_fill(torch.rand(batch, keys) < 0.2, -INFINITY)
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


def assert_sums(actual: Tensor, exact: Tensor, size: Tensor, terms: int) -> None:
    """Compare sums of so many terms, whose absolute values add up to ``size``, with the bound of their roundings."""
    rounding = 0 if actual.dtype == torch.float32 else torch.finfo(actual.dtype).eps * exact.abs() + 1e-7
    assert ((actual.double() - exact).abs() <= (terms + 2) * 2**-24 * size + rounding).all()


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
