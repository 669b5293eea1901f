"""Euclidean neighbours are exact: those of the float64 distances of the given numbers, wherever the tokens are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import convnn
from convnn import native
from convnn.ops.euclidean import nearest_euclidean
from convnn.ops.native import native_nearest_euclidean
from convnn.testing import function_with_gradients

from ..layers import IMPLEMENTATIONS

K = 5


@pytest.fixture(params=["plain", "native"])
def search(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """The operator, by either of its forms."""
    if request.param == "native" and native.why_not():
        pytest.skip(f"needs the native library: {native.why_not()}")
    return native_nearest_euclidean if request.param == "native" else nearest_euclidean


def clusters(spread: float, count: int = 6, size: int = 12, width: int = 8) -> Tensor:
    return (torch.randn(count, 1, width) * spread + torch.randn(count, size, width)).flatten(0, 1)


def with_outlier() -> Tensor:
    x = torch.randn(70, 6)
    x[7] *= 1e8
    return x


DATA: dict[str, Callable[[], Tensor]] = {
    "a laser scan": lambda: torch.rand(90, 3) * torch.tensor([100.0, 100, 30]) + torch.tensor([5e5, 5.4e6, 200]),
    "half of them shifted": lambda: (torch.rand(80, 16) * 16).round() + 1e4 * (torch.arange(80) % 2).unsqueeze(1),
    **{f"offset {offset:g}": lambda o=offset: torch.randn(60, 8) + o for offset in (1, 1e2, 1e4, 1e6, 1e7)},
    **{f"clusters {spread:g} apart": lambda s=spread: clusters(s) for spread in (1e1, 1e3, 1e5, 1e7)},
    "channels of many scales": lambda: torch.randn(70, 9) * torch.logspace(-4, 4, 9) + torch.logspace(6, -2, 9),
    "tokens of many scales": lambda: torch.randn(70, 5) * torch.logspace(-6, 6, 70).unsqueeze(1),
    "one far outlier": with_outlier,
    "duplicates": lambda: torch.randn(12, 7).repeat(6, 1) + 1e3,
    "tiny numbers": lambda: torch.randn(50, 4) * 1e-16,
    "zeros among them": lambda: torch.randn(60, 8).relu() * (torch.rand(60, 1) > 0.4),
    "one-hot": lambda: torch.eye(9)[torch.randint(9, (60,))] * 0.3,
    **{f"C = {width}": lambda w=width: torch.randn(40, w) + 1e3 for width in (1, 2, 3, 17, 512, 4096)},
}  # fmt: skip


def distances(query: Tensor, key: Tensor) -> Tensor:
    """Squared distances of the given numbers, in float64, by differences: ``(N, M)``."""
    return (query.double().unsqueeze(1) - key.double()).square().sum(-1)


def assert_nearest(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Every slot holds a key as near as the one that belongs there, up to a few roundings of the distance."""
    assert all(len(set(row)) == len(row) for row in found.tolist())
    best, taken = exact.sort(dim=1).values[:, : found.shape[1]], exact.gather(1, found)
    assert ((taken - best).abs() <= 4 * torch.finfo(dtype).eps * best).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", DATA)
def test_the_neighbours_are_those_of_the_exact_distances(name, impl):
    torch.manual_seed(0)
    given = DATA[name]()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = given.to(dtype)
        if impl == "reference":
            x = x[::3]
        for deterministic in (False, True):
            options = {"similarity": "sqeuclidean", "deterministic": deterministic, "impl": impl}
            found = convnn.knn_search(x.unsqueeze(0), x.unsqueeze(0), K, **options)
            exact = distances(x, x)
            assert_nearest(found.index[0], exact, found.similarity.dtype)
            ties = 4 * torch.finfo(found.similarity.dtype).eps
            torch.testing.assert_close(
                -found.similarity[0].double(), exact.gather(1, found.index[0]), rtol=ties, atol=0
            )


MANY: dict[str, Callable[[], Tensor]] = {
    "far clusters": lambda: clusters(1e6, count=12, size=100),
    "far clusters of unequal size": lambda: torch.cat([clusters(1e7, 3, 350), clusters(1e4, 60, 3), clusters(1e2)]),
    "clusters in clusters": lambda: torch.cat([clusters(1e2, 5, 110) + far * 1e6 for far in (-1, 2, 5)]),
    "small far clusters": lambda: clusters(1e7, count=60, size=20),
    "duplicates": lambda: torch.randn(210, 7).repeat(6, 1) + 1e3,
    "one-hot": lambda: torch.eye(9)[torch.randint(9, (1100,))] * 0.3,
    "a line": lambda: torch.arange(1100.0).unsqueeze(1) * torch.randn(1, 3) + 1e5,
    "very short vectors": lambda: clusters(1e4, count=12, size=100) * 1e-17,
    "many channels": lambda: torch.randn(1100, 700),
    "random": lambda: torch.randn(1100, 5),
}  # fmt: skip


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", MANY)
def test_among_so_many_tokens_that_parts_of_them_get_centres_of_their_own(name, deterministic):
    torch.manual_seed(0)
    x = MANY[name]()
    options = {"similarity": "sqeuclidean", "deterministic": deterministic}
    found = convnn.knn_search(x.unsqueeze(0), x.unsqueeze(0), K, **options)
    exact = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    assert_nearest(found.index[0], exact, torch.float32)
    if deterministic and name != "duplicates":  # whose float64 distances are rounded apart
        equal = found.similarity[0, :, 1:] == found.similarity[0, :, :-1]
        assert (found.index[0].diff(dim=1)[equal] > 0).all()


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("name", ["far clusters", "clusters in clusters", "duplicates"])
def test_excluded_keys_do_not_count_as_neighbours_of_a_group(search, name, stable):
    """A group leaves out keys that are further than its k nearest; excluded ones are none of these."""
    torch.manual_seed(0)
    x = MANY[name]()[torch.randperm(1100)]
    tokens, masked = torch.stack([x, x.flip(0)]), torch.rand(2, x.shape[0]) < 0.9
    skip = torch.arange(x.shape[0])
    found = search(tokens, tokens, None, None, None, masked, skip, K, stable)
    for sample, excluded, index in zip(tokens, masked, found, strict=True):
        exact = torch.cdist(*[sample.double()] * 2, compute_mode="donot_use_mm_for_euclid_dist").square()
        exact = exact.fill_diagonal_(torch.inf).masked_fill(excluded, torch.inf)
        assert_nearest(index, exact, torch.float32)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("name", ["a laser scan", "clusters 1000 apart", "offset 1e+06"])
@pytest.mark.parametrize(
    "candidates", [convnn.Random(30, 1), convnn.Grid(40), torch.arange(0, 60, 2), convnn.Window(21)]
)
def test_among_few_candidates_too(name, candidates, impl):
    torch.manual_seed(0)
    x = DATA[name]()[:60]
    options = {"similarity": "euclidean", "candidates": candidates, "include_self": True, "impl": impl}
    tokens = x.unsqueeze(0)
    index = convnn.knn_search(tokens, tokens, K, **options).index[0]
    assert index[:, 0].tolist() == list(range(60))
    exact, position = distances(x, x).fill_diagonal_(torch.inf), torch.arange(60)
    if isinstance(candidates, convnn.Window):
        exact[(position.unsqueeze(1) - position).abs() > 10] = torch.inf
    else:
        kept = {30: convnn.Random(30, 1).draw(60, x.device), 40: position[:40] * 59 // 39}.get(
            getattr(candidates, "r", getattr(candidates, "g", None)), candidates
        )
        exact[:, (position.unsqueeze(1) != kept).all(1)] = torch.inf
    assert_nearest(index[:, 1:], exact, torch.float32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_a_blend_does_not_round_coordinates(lam, impl):
    """Of features far from zero: joined and scaled before they are compared, they would lose their digits."""
    torch.manual_seed(0)
    x = torch.randn(42, 3) + 1e6
    similarity = convnn.Blend(lam, "sqeuclidean")
    tokens = x.unsqueeze(0)
    found = convnn.knn_search(tokens, tokens, K, similarity=similarity, grid=(6, 7), impl=impl)
    row, column = torch.meshgrid(torch.arange(6).double() * 0.4 - 1, torch.arange(7).double() / 3 - 1, indexing="ij")
    positions = torch.stack([column.flatten(), row.flatten()], 1)
    exact = (lam / (x.double().std() + 1e-6)) ** 2 * distances(x, x) + (1 - lam) ** 2 * distances(positions, positions)
    best, taken = exact.sort(dim=1).values[:, :K], exact.gather(1, found.index[0])
    torch.testing.assert_close(taken, best, rtol=1e-5 if lam else 1e-12, atol=0)  # of std in float32


@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_gradients_do_not_lose_digits_to_an_offset(offset, impl):
    torch.manual_seed(0)
    x = torch.randn(1, 40, 4) + offset
    rough, exact = (
        function_with_gradients(
            lambda x: convnn.knn_search(x, x, K, similarity="euclidean", impl=impl).similarity, x=given
        )
        for given in (x, x.double())
    )
    torch.testing.assert_close(rough["gradient of x"].double(), exact["gradient of x"], rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- the operator
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("blended", [False, True])
@pytest.mark.parametrize(("spread", "size"), [(1.0, 12), (1e3, 12), (1e7, 12), (1e4, 180)])
def test_masks_and_own_keys_are_left_out(search, spread, size, blended, stable):
    torch.manual_seed(0)
    key = torch.stack([clusters(spread, size=size), clusters(spread, size=size)])
    step, keys = (5, 72) if size == 12 else (1, 1080)
    query, masked = key[:, ::step], torch.rand(2, keys) < 0.4
    own = torch.arange(0, keys, step)
    own = own.masked_fill(torch.arange(len(own)) % 3 == 0, -1)
    factor, query_position, key_position = torch.rand(2, 1, 1), torch.rand(len(own), 2), torch.rand(keys, 2)
    blend = (factor, query_position, key_position) if blended else (None, None, None)
    found = search(query, key, *blend, masked, own, 8, stable)
    for sample in range(2):
        exact = distances(query[sample], key[sample])
        if blended:
            exact = exact * factor[sample].double() ** 2 + distances(query_position, key_position)
        exact = exact.masked_fill(masked[sample], torch.inf)
        exact[torch.arange(len(own))[own >= 0], own[own >= 0]] = torch.inf
        assert exact.gather(1, found[sample]).isfinite().all()
        assert_nearest(found[sample], exact, torch.float32)


@pytest.mark.parametrize("scale", [1.0, 0.37])  # integers, whose products are exact, and numbers that are none
def test_equal_distances_go_lowest_index_first_in_a_stable_search(search, scale):
    x = torch.randint(-2, 3, (200, 3), generator=torch.Generator().manual_seed(0)) * scale + 5e3 * scale
    exact = distances(x, x)
    found = search(x[None], x[None], None, None, None, None, None, 12, True)[0]
    assert torch.equal(found, exact.sort(dim=1, stable=True).indices[:, :12])


@pytest.fixture(params=["high", "medium", "backend by backend"])
def _reduced_precision(request):
    """Let torch compute products in reduced precision, by either of its settings."""
    before = torch.get_float32_matmul_precision()
    matmul = torch.backends.mkldnn.matmul
    if request.param == "backend by backend":
        matmul.fp32_precision = "bf16"
    else:
        torch.set_float32_matmul_precision(request.param)
    yield
    matmul.fp32_precision = "none"  # torch does not mix the two settings
    torch.set_float32_matmul_precision(before)
    matmul.fp32_precision = "none"


@pytest.mark.usefixtures("_reduced_precision")
def test_products_in_reduced_precision_are_not_trusted(search):
    x = clusters(30.0)
    found = search(x[None], x[None], None, None, None, None, None, K, False)[0]
    assert_nearest(found, distances(x, x), torch.float32)


def test_broken_tokens_do_not_change_the_others(search):
    torch.manual_seed(0)
    x = torch.randn(1, 50, 4) + 1e4
    x[0, 3], x[0, 9, 0] = torch.inf, -torch.inf
    index = search(x, x, None, None, None, None, None, K, False)[0]
    others = torch.tensor([n for n in range(50) if n not in (3, 9)])
    exact = distances(x[0, others], x[0])
    assert_nearest(index[others], exact, torch.float32)
    x[0, 20] = torch.nan
    index = search(x, x, None, None, None, None, None, K, False)[0]
    assert (index[others[others != 20], 0] == 20).all()
    others = others[others != 20]
    exact = distances(x[0, others], x[0])
    exact[:, 20] = torch.inf
    assert_nearest(index[others, 1:], exact, torch.float32)
