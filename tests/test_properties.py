"""What must hold for every input: symmetries of the operator, and candidate sets against their definitions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import convnn
from convnn.testing import assert_close, separated_tokens

from .layers import FEATURES

few = settings(max_examples=50, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)
sizes = st.integers(2, 14)
names = st.sampled_from(FEATURES)
grids = st.one_of(
    st.tuples(st.integers(1, 20)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def order(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def positions(grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every position of a grid, in raster order."""
    return list(itertools.product(*(range(size) for size in grid)))


# ----------------------------------------------------------------------------------------------------------- symmetries
@few
@given(seeds, sizes, names, st.sampled_from(["ones", "identity", "softmax"]), st.booleans(), st.data())
def test_permuting_tokens_permutes_the_result(seed, count, name, weighting, include_self, data):
    k = data.draw(st.integers(1, count))
    x, shuffled = separated_tokens(2, count, 3, seed=seed, gap=1e-5), order(seed, count)
    weight = draw(seed + 1, 5, 3, k)

    def aggregate(x: Tensor) -> Tensor:
        options: dict[str, Any] = {"similarity": name, "weighting": weighting, "include_self": include_self}
        return convnn.knn_aggregate(x, x, x, weight, k=k, **options)

    assert_close({"y": aggregate(x[:, shuffled])}, {"y": aggregate(x)[:, shuffled]})


@few
@given(seeds, sizes, names, st.sampled_from(["ones", "softmax"]))
def test_with_every_token_the_order_of_candidates_is_irrelevant(seed, count, name, weighting):
    """A sum over all tokens: permuting keys and values together changes nothing, nor does naming them one by one."""
    query, key, value = draw(seed, 2, 5, 3), draw(seed + 1, 2, count, 3), draw(seed + 2, 2, count, 4)
    options: dict[str, Any] = {"k": count, "similarity": name, "weighting": weighting}
    shuffled = order(seed, count)
    y = convnn.knn_aggregate(query, key, value, **options)
    assert_close({"y": convnn.knn_aggregate(query, key[:, shuffled], value[:, shuffled], **options)}, {"y": y})
    if count != 5:  # queries that are keys would take their own slot first
        assert_close({"y": convnn.knn_aggregate(query, key, value, candidates=shuffled, **options)}, {"y": y})
    if weighting == "ones":
        assert_close({"y": y}, {"y": value.sum(1, keepdim=True).expand_as(y)})


@few
@given(seeds, sizes, st.data())
def test_lengths_do_not_change_cosine_neighbours(seed, count, data):
    x = separated_tokens(2, count, 3, seed=seed, gap=1e-5)
    lengths = 10 ** (2 * draw(seed, 2, count, 1))
    k = data.draw(st.integers(1, count))
    expected = convnn.knn_search(x, x, k)
    for query, key in ((x * lengths, x), (x, x * lengths), (x * lengths, x * lengths)):
        found = convnn.knn_search(query, key, k)
        assert torch.equal(found.index, expected.index)
        assert_close({"similarity": found.similarity}, {"similarity": expected.similarity})


@few
@given(seeds, sizes, names, st.data())
def test_moving_all_tokens_does_not_change_euclidean_neighbours(seed, count, name, data):
    x = separated_tokens(2, count, 3, seed=seed)
    k = data.draw(st.integers(1, count))
    moved = x + 1000 * draw(seed, 2, 1, 3)
    for similarity in ("sqeuclidean", "euclidean"):
        expected = convnn.knn_search(x, x, k, similarity=similarity).index
        assert torch.equal(convnn.knn_search(moved, moved, k, similarity=similarity).index, expected)


@few
@given(seeds, st.integers(3, 14), st.sampled_from([*FEATURES, "spatial", convnn.Blend(0.5)]))
def test_samples_do_not_influence_each_other(seed, count, similarity):
    x, weight = draw(seed, 3, count, 4), draw(seed + 1, 5, 4, 3)
    options: dict[str, Any] = {"k": 3, "similarity": similarity, "weighting": "softmax"}
    y = convnn.knn_aggregate(x, x, x, weight, **options)
    alone = torch.cat([convnn.knn_aggregate(one, one, one, weight, **options) for one in x.split(1)])
    assert_close({"y": alone}, {"y": y})
    other = torch.cat([x[:1], 100 * draw(seed + 2, 1, count, 4), x[2:]])
    changed = convnn.knn_aggregate(other, other, other, weight, **options)
    assert torch.equal(changed[::2], y[::2])


@few
@given(seeds, sizes, names, st.booleans(), st.data())
def test_similarities_descend_over_the_slots(seed, count, name, include_self, data):
    """All slots but the own token's; more neighbours only add slots behind."""
    k = data.draw(st.integers(1, count))
    x, query = draw(seed, 2, count, 3), draw(seed + 1, 2, count, 3)
    found = convnn.knn_search(query, x, k, similarity=name, include_self=include_self, query_index="same")
    others = found.similarity[..., int(include_self) :]
    assert (others[..., :-1] >= others[..., 1:]).all()
    assert (found.index.sort().values.diff() > 0).all()
    if include_self:
        assert torch.equal(found.index[..., 0], torch.arange(count).expand(2, -1))
    everyone = convnn.knn_search(query, x, count, similarity=name, include_self=include_self, query_index="same")
    assert torch.equal(everyone.index[..., :k], found.index)


# ----------------------------------------------------------------------------------------------------------- candidates
@few
@given(seeds, st.integers(1, 40), st.data())
def test_random_candidates_are_distinct_in_range_and_repeatable(seed, count, data):
    r = data.draw(st.integers(1, count))
    cpu = torch.device("cpu")
    drawn = convnn.Random(r, seed).draw(count, cpu)
    assert drawn.shape == (r,)
    assert len(set(drawn.tolist())) == r
    assert set(drawn.tolist()) <= set(range(count))
    assert torch.equal(convnn.Random(r, seed).draw(count, cpu), drawn)
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    first, second = (convnn.Random(r, generator=generator).draw(count, cpu) for generator in generators)
    assert torch.equal(first, second)
    assert len(set(first.tolist())) == r


def test_different_seeds_usually_draw_differently():
    cpu = torch.device("cpu")
    by_seed = {tuple(convnn.Random(8, seed).draw(64, cpu).tolist()) for seed in range(200)}
    generator = torch.Generator().manual_seed(0)
    by_generator = {tuple(convnn.Random(8, generator=generator).draw(64, cpu).tolist()) for _ in range(200)}
    assert len(by_seed) > 195
    assert len(by_generator) > 195


@pytest.mark.parametrize("seeded", [True, False])
def test_every_token_is_drawn_equally_often(seeded):
    """2000 draws of 4 among 16: each about 500 times, within five standard deviations."""
    counts = torch.zeros(16)
    for seed in range(2000):
        source = {"seed": seed} if seeded else {"generator": torch.Generator().manual_seed(seed)}
        counts[convnn.Random(4, **source).draw(16, torch.device("cpu"))] += 1
    assert (counts - 500).abs().max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


@few
@given(seeds, st.integers(6, 20), st.integers(3, 5))
def test_one_draw_serves_the_whole_batch(seed, count, r):
    x = draw(seed, 3, count, 4)
    found = convnn.knn_search(x, x, 3, candidates=convnn.Random(r, seed))
    assert torch.equal(found.index[..., 0], torch.arange(count).expand(3, -1))
    drawn = set(convnn.Random(r, seed).draw(count, x.device).tolist())
    assert set(found.index[..., 1:].flatten().tolist()) <= drawn
    again = convnn.knn_search(x, x, 3, candidates=convnn.Random(r, seed))
    assert torch.equal(again.index, found.index)


def test_without_a_seed_every_call_draws_anew():
    """From torch's global generator, so that its seed still makes a run repeatable."""
    x = draw(0, 1, 30, 4)

    def drawn() -> list[tuple[int, ...]]:
        torch.manual_seed(7)
        found = [convnn.knn_search(x, x, 2, candidates=convnn.Random(2)) for _ in range(20)]
        return [tuple(each.index[..., 1].unique().tolist()) for each in found]

    assert len(set(drawn())) > 15
    assert drawn() == drawn()


@few
@given(seeds, st.integers(1, 12), st.integers(0, 5))
def test_more_candidates_than_tokens_are_all_tokens(seed, count, more):
    x = draw(seed, 2, count, 3)
    k = max(count // 2, 1)
    expected = convnn.knn_search(x, x, k, include_self=True)
    for spec in (convnn.Random(count + 1 + more), convnn.Grid(count + 1 + more)):
        assert torch.equal(convnn.knn_search(x, x, k, candidates=spec, include_self=True).index, expected.index)


@few
@given(st.integers(1, 60), st.data())
def test_grid_candidates_are_the_floors_of_a_linear_spacing(length, data):
    g = data.draw(st.integers(1, length))
    margin = data.draw(st.integers(0, (length - g) // 2))
    last = length - 1 - margin
    exact = [margin + (Fraction(i * (last - margin), g - 1) if g > 1 else 0) for i in range(g)]
    expected = [math.floor(at) for at in exact]
    x = torch.ones(1, length, 2, dtype=torch.float64)
    stranger = torch.ones(1, length + 1, 2, dtype=torch.float64)
    found = convnn.knn_search(stranger, x, g, candidates=convnn.Grid(g, margin))
    assert sorted(found.index[0, 0].tolist()) == expected


@few
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_grid_candidates_of_a_map_are_the_product_of_its_axes(height, width, data):
    g = data.draw(st.integers(1, min(height, width)))
    axes = [[(size - 1) * i // max(g - 1, 1) for i in range(g)] for size in (height, width)]
    stranger = torch.ones(1, height * width + 1, 2)
    x = torch.ones(1, height * width, 2)
    found = convnn.knn_search(stranger, x, g * g, candidates=convnn.Grid(g), grid=(height, width))
    assert sorted(found.index[0, 0].tolist()) == [y * width + x for y, x in itertools.product(*axes)]


# -------------------------------------------------------------------------------------------------- positions on a grid
@few
@given(grids, st.data())
def test_spatial_neighbours_are_the_nearest_positions(grid, data):
    """Chebyshev, then Euclidean distance, then raster order; for any grid, any k, with and without the own slot."""
    everywhere = positions(grid)
    k = data.draw(st.integers(1, len(everywhere)))
    include_self = data.draw(st.booleans())
    x = torch.zeros(1, len(everywhere), 1)
    found = convnn.knn_search(x, x, k, similarity="spatial", grid=grid, include_self=include_self)
    for n, here in enumerate(everywhere):
        apart = [[abs(a - b) for a, b in zip(here, there, strict=True)] for there in everywhere]
        ranking = sorted(range(len(everywhere)), key=lambda j: (max(apart[j]), sum(a * a for a in apart[j]), j))
        expected = sorted(ranking[:k])
        if include_self:
            expected = [n, *(j for j in expected if j != n)]
        assert found.index[0, n].tolist() == expected
        assert found.similarity[0, n].tolist() == [-max(apart[j]) for j in expected]


def inside(here: tuple[int, ...], there: tuple[int, ...], sizes: list[int], dilations: list[int]) -> bool:
    axes = zip(here, there, sizes, dilations, strict=True)
    return all((b - a) % d == 0 and abs(b - a) <= d * (s // 2) for a, b, s, d in axes)


def shifted(at: int, size: int, dilation: int, length: int) -> range:
    """The run of positions, ``dilation`` apart, that has ``at`` nearest to its middle."""
    reachable = range(at % dilation, length, dilation)
    runs = [reachable[i : i + size] for i in range(len(reachable) - size + 1)]
    return min((run for run in runs if at in run), key=lambda run: abs(run[size // 2] - at))


@few
@given(grids, st.data())
def test_window_candidates_are_the_positions_inside(grid, data):
    """Both borders, with dilation: the candidates of a query are all that it can reach, each once."""
    sizes: list[int] = []
    dilations: list[int] = []
    for length in grid:
        dilations.append(data.draw(st.integers(1, 2 if length > 1 else 1)))
        sizes.append(data.draw(st.sampled_from([s for s in (1, 3, 5) if s * dilations[-1] <= length])))
    everywhere = positions(grid)
    x = draw(0, 1, len(everywhere), 3)
    for n, here in enumerate(everywhere):
        clipped = [j for j, there in enumerate(everywhere) if inside(here, there, sizes, dilations)]
        axes = [shifted(*axis) for axis in zip(here, sizes, dilations, grid, strict=True)]
        expected = {"clip": clipped, "shift": [everywhere.index(position) for position in itertools.product(*axes)]}
        for border, window in expected.items():
            spec = convnn.Window(sizes, dilations, border=border)
            own: dict[str, Any] = {"grid": grid, "query_index": torch.tensor([n])}
            found = convnn.knn_search(x[:, n : n + 1], x, len(window), candidates=spec, **own)
            assert sorted(found.index[0, 0].tolist()) == sorted(window)
            with pytest.raises(convnn.ConvNNError, match=r"^k: "):
                convnn.knn_search(x[:, n : n + 1], x, len(window) + 1, candidates=spec, **own)
