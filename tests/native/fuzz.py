"""Random cases for the kernels: ``python -m tests.native.fuzz --cases 100000``.

Every case has a random operator, level, number of threads, shape, layout, alignment, type, mask, and values: numbers
whose products are exact, with NaN and infinities among them, or any numbers. The truth is the plain form in float64.
A case is made from its number alone: ``--first 1234 --cases 1`` repeats one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from convnn import native
from convnn.ops import native as kernels
from convnn.ops.bags import plain_bag_scatter, plain_bag_sum, plain_pair_distance, plain_pair_product
from convnn.ops.euclidean import plain_nearest_euclidean
from convnn.ops.nearest import plain_nearest
from convnn.ops.sampled import plain_sampled_mix, plain_sampled_mix_backward
from convnn.ops.slots import plain_slot_mix, plain_slot_mix_backward

from .data import assert_sums, not_finite, of_any_size, whole_numbers

Draw = Callable[..., Tensor]


class Case:
    """One random case: sizes, values and layouts from its number."""

    def __init__(self, number: int) -> None:
        self.random = Random(number)
        torch.manual_seed(number)
        self.exact = self.random.random() < 0.5
        self.dtype = self.random.choice([torch.float32] * 4 + [torch.bfloat16, torch.float16])
        special = self.random.random() < 0.3
        self.finite: Draw = whole_numbers if self.exact else torch.randn
        self.draw: Draw = not_finite if self.exact and special else self.finite

    def size(self, most: int) -> int:
        """A size up to ``most``, small ones more often."""
        return self.random.randint(1, min(most, self.random.choice([2, 20, most])))

    def sometimes(self, make: Callable[[], Tensor]) -> Tensor | None:
        return make() if self.random.random() < 0.5 else None

    def tokens(self, *shape: int, draw: Draw | None = None) -> Tensor:
        """Tokens ``(B, N, C)``: rows, a map, every second row, parts of rows, expanded, misaligned."""
        batch, count, channels = shape
        x = (draw or self.draw)(*shape).to(self.dtype)
        layout = self.random.randrange(6)
        if layout == 1:
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == 2:
            return torch.stack([x, x], 2).flatten(1, 2)[:, ::2]
        if layout == 3:
            return torch.cat([x, x], 2)[..., channels:]
        if layout == 4:
            return x[:1, :1].expand(batch, count, channels)
        if layout == 5:
            flat = torch.cat([x.new_zeros(1), x.flatten()])
            return flat[1:].view(shape)
        return x

    def index(self, batch: int, count: int, k: int, rows: int) -> Tensor:
        """Rows of a table, some chosen by many."""
        index = torch.randint(0, rows, (batch, count, k))
        return index.clamp(max=self.size(rows) - 1) if self.random.random() < 0.3 else index

    def compare(self, actual: Tensor, exact: Tensor, size: Tensor, terms: int) -> None:
        """Compare sums: equal where their products are exact, else within the bound of the roundings.

        Which of NaN and infinity comes out depends on the order of the products; that neither is finite does not.
        """
        if self.exact and self.dtype == torch.float32:
            assert torch.equal(actual.isfinite(), exact.isfinite())
            assert torch.equal(actual.double().nan_to_num(0, 0, 0), exact.nan_to_num(0, 0, 0))
        elif not self.exact:
            assert_sums(actual, exact, size, terms)


def double(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.double() for x in tensors]


def absolute(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.double().abs() for x in tensors]


def search(case: Case) -> None:
    batch, queries, keys, channels = case.size(3), case.size(60), case.size(300), case.size(70)
    query, key = case.tokens(batch, queries, channels), case.tokens(batch, keys, channels)
    k = case.size(min(32, keys))
    bias = case.sometimes(lambda: whole_numbers(batch, keys).masked_fill(torch.rand(batch, keys) < 0.2, -torch.inf))
    masked = case.sometimes(lambda: torch.rand(batch, keys) < case.random.random())
    skip = case.sometimes(lambda: torch.randint(-1, keys, (queries,)))
    found = kernels.native_nearest(query, key, bias, masked, skip, k, True)
    if case.exact:
        assert torch.equal(found, plain_nearest(query.double(), key.double(), bias, masked, skip, k, True))
        return
    allowed = torch.ones(batch, queries, keys, dtype=torch.bool)
    allowed &= True if masked is None else ~masked.unsqueeze(1)
    allowed &= True if skip is None else torch.arange(keys) != skip.unsqueeze(1)
    scores = query.double() @ key.double().transpose(1, 2) + (0 if bias is None else bias.double().unsqueeze(1))
    size = query.double().abs() @ key.double().abs().transpose(1, 2) + 2
    scores = scores.masked_fill(~allowed, -torch.inf)
    best, taken = scores.topk(k).values, scores.gather(2, found)
    near = (channels + 3) * 2**-23 * size.amax(2, keepdim=True)
    assert ((taken == best) | (best - taken <= near)).all()
    assert all(len(set(row)) == k for row in found.flatten(0, 1).tolist())


def search_euclidean(case: Case) -> None:
    batch, queries, keys, channels = case.size(3), case.size(60), case.size(200), case.size(40)
    draw: Draw = case.random.choice(
        [case.draw, of_any_size, lambda *s: torch.randn(*s) + 10 ** case.random.uniform(0, 7)]
    )
    query, key = case.tokens(batch, queries, channels, draw=draw), case.tokens(batch, keys, channels, draw=draw)
    k, axes = case.size(min(32, keys)), case.size(3)
    blend = (torch.rand(batch, 1, 1), torch.rand(queries, axes), torch.rand(keys, axes))
    blend = blend if case.random.random() < 0.4 else (None, None, None)
    masked = case.sometimes(lambda: torch.rand(batch, keys) < case.random.random())
    skip = case.sometimes(lambda: torch.randint(-1, keys, (queries,)))
    found = kernels.native_nearest_euclidean(query, key, *blend, masked, skip, k, True)
    truth = plain_nearest_euclidean(query.float(), key.float(), *blend, masked, skip, k, True)
    if not torch.equal(found, truth):  # pairs whose distances differ by a rounding of float64
        wide = (query.double().unsqueeze(2) - key.double().unsqueeze(1)).square().sum(-1)
        if blend[0] is not None and blend[1] is not None and blend[2] is not None:
            wide = wide * blend[0].double() ** 2 + (blend[1].double().unsqueeze(1) - blend[2].double()).square().sum(-1)
        excluded = torch.zeros(batch, 1, keys, dtype=torch.bool) if masked is None else masked.unsqueeze(1)
        own = torch.zeros(queries, keys, dtype=torch.bool) if skip is None else torch.arange(keys) == skip.unsqueeze(1)
        left_out = (excluded | own).expand_as(wide)
        assert torch.equal(left_out.gather(2, found), left_out.gather(2, truth))
        torch.testing.assert_close(wide.gather(2, found), wide.gather(2, truth), rtol=1e-13, atol=0, equal_nan=True)


def slots(case: Case) -> None:
    batch, values, queries, k = case.size(3), case.size(130), case.size(130), case.size(12)
    groups, width, each = case.random.choice([(1, case.size(70), case.size(70)), (case.size(20), 1, 1), (3, 2, 4)])
    channels, out = groups * width, groups * each
    value, grad = case.tokens(batch, values, channels, draw=case.finite), case.tokens(batch, queries, out)
    weight, index = case.tokens(out, width, k, draw=case.finite), case.index(batch, queries, k, values)
    if case.random.random() < 0.2:
        value = value.masked_fill(
            torch.ones(batch, values).scatter_(1, index.flatten(1), 0).bool().unsqueeze(2), torch.nan
        )
    rho = case.sometimes(lambda: case.tokens(batch, queries, k))
    wide, size = double(value, weight, rho, grad), absolute(value, weight, rho, grad)
    exact, bound = (plain_slot_mix(x[0], x[1], index, x[2], groups) for x in (wide, size))
    case.compare(kernels.native_slot_mix(value, weight, index, rho, groups), exact, bound, 3 * k * width)
    exact, bound = (plain_slot_mix_backward(x[3], x[0], x[1], index, x[2], groups) for x in (wide, size))
    found = kernels.native_slot_mix_backward(grad, value, weight, index, rho, groups)
    terms = 3 * batch * queries * k + k * out + channels
    for result in zip(found, exact, bound, strict=True):
        case.compare(*result, terms)


def few_candidates(case: Case) -> None:
    batch, height, breadth, channels, out = (case.size(most) for most in (3, 9, 9, 50, 50))
    others, count, layout = case.size(8) - 1, case.size(20), case.random.random() < 0.5
    stride = [case.size(3), case.size(3)]
    offset = [case.random.randrange(height), case.random.randrange(breadth)]
    shape = [case.random.randint(1, (size - start + step - 1) // step)
             for size, start, step in zip((height, breadth), offset, stride, strict=True)]  # fmt: skip
    grid, queries = [height, breadth, *shape, *offset, *stride], shape[0] * shape[1]
    value, grad = case.tokens(batch, height * breadth, channels, draw=case.finite), case.tokens(batch, queries, out)
    slot_matrices = case.finite(others + 1, out, channels).to(case.dtype)
    bias = case.sometimes(lambda: case.draw(out).to(case.dtype))
    rest = (torch.randint(-1, height * breadth, (count,)), case.index(batch, queries, others, count), grid, layout)
    wide, size = (x(value, slot_matrices, bias, grad) for x in (double, absolute))
    exact, bound = (plain_sampled_mix(*x[:3], *rest) for x in (wide, size))
    found = kernels.native_sampled_mix(value, slot_matrices, bias, *rest)
    case.compare(found, exact, bound, 3 * (others + 1) * channels)
    exact, bound = (plain_sampled_mix_backward(x[3], x[0], x[1], *rest, True) for x in (wide, size))
    actual = kernels.native_sampled_mix_backward(grad, value, slot_matrices, *rest, True)
    for result in zip(actual, exact, bound, strict=True):
        case.compare(*result, 3 * batch * queries * (others + 1) + (others + 1) * out)


def bags(case: Case) -> None:
    batch, rows, queries, channels, k = (case.size(most) for most in (3, 100, 150, 150, 12))
    table, source = case.tokens(batch, rows, channels), case.tokens(batch, queries, channels)
    index, weight = case.index(batch, queries, k, rows), case.sometimes(lambda: case.tokens(batch, queries, k))
    wide, size = double(table, source, weight), absolute(table, source, weight)
    exact, bound = (plain_bag_sum(x[0], index, x[2]) for x in (wide, size))
    case.compare(kernels.native_bag_sum(table, index, weight), exact, bound, 2 * k)
    exact, bound = (plain_bag_scatter(x[1], index, x[2], rows) for x in (wide, size))
    case.compare(kernels.native_bag_scatter(source, index, weight, rows), exact, bound, 2 * queries * k)
    exact, bound = (plain_pair_product(x[1], x[0], index) for x in (wide, size))
    case.compare(kernels.native_pair_product(source, table, index), exact, bound, channels)
    exact, bound = plain_pair_distance(wide[1], wide[0], index), plain_pair_distance(size[1], -size[0], index)
    case.compare(kernels.native_pair_distance(source, table, index), exact, bound, 3 * channels)


OPERATORS = (search, search_euclidean, slots, few_candidates, bags)


def run(number: int) -> str:
    """Run one case; return which."""
    case = Case(number)
    operator = case.random.choice(OPERATORS)
    level = case.random.choice([name for name, reason in native.levels().items() if reason is None])
    before = torch.get_num_threads()
    torch.set_num_threads(case.random.randint(1, 4))
    try:
        with native.at_level(level):
            operator(case)
    except Exception as error:
        error.add_note(f"case {number}: {operator.__name__} at {level}, {case.dtype}, exact: {case.exact}")
        raise
    finally:
        torch.set_num_threads(before)
    return operator.__name__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    arguments = parser.parse_args()
    if native.why_not():
        sys.exit(f"needs the native library: {native.why_not()}")
    start, counts = time.monotonic(), dict.fromkeys((operator.__name__ for operator in OPERATORS), 0)
    for number in range(arguments.first, arguments.first + arguments.cases):
        counts[run(number)] += 1
        if (number + 1) % 1000 == 0:
            print(f"{number + 1} cases, {time.monotonic() - start:.0f} s", flush=True)
    print(", ".join(f"{name} {count}" for name, count in counts.items()) + ": no difference")


if __name__ == "__main__":
    main()
