"""Where the answer hangs by a thread: ties, zeros, nan and infinity, masks, and the smallest sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import convnn
from convnn.testing import assert_close, separated_tokens, with_gradients

from ..layers import FEATURES, IMPLEMENTATIONS

pytestmark = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def search(x: Tensor, k: int, **options: Any) -> convnn.Neighbors:
    return convnn.knn_search(x, x, k, **options)


# ----------------------------------------------------------------------------------------------------------------- ties
def lowest_index_first(scores: list[int], k: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:k]


def whole_tokens(seed: int, count: int = 13) -> Tensor:
    """Tokens of whole numbers: every similarity but the cosine is exact, and many are equal."""
    return torch.randint(-2, 3, (1, count, 3), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dot", "sqeuclidean", "euclidean"])
def test_equal_similarities_of_whole_numbers(name, dtype, impl):
    for seed in range(5):
        whole = whole_tokens(seed)
        scale = {"scale": 1.0} if name == "dot" else {}
        found = search(whole.to(dtype), 5, similarity=name, deterministic=True, impl=impl, **scale)
        rows = whole[0].tolist()
        for n, q in enumerate(rows):
            dot = [sum(a * b for a, b in zip(q, key, strict=True)) for key in rows]
            away = [-sum((a - b) ** 2 for a, b in zip(q, key, strict=True)) for key in rows]
            assert found.index[0, n].tolist() == lowest_index_first(dot if name == "dot" else away, 5), (seed, n)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FEATURES)
def test_duplicates(name, dtype, impl):
    """Seven different tokens, five times over: of equal tokens the first come first, wherever k cuts."""
    for seed in range(3):
        once = separated_tokens(1, 7, 5, dtype=dtype, seed=seed)
        found = search(once.repeat(1, 5, 1)[:, :33], 8, similarity=name, deterministic=True, impl=impl)
        order = search(once, 7, similarity=name, impl="reference").index[0]
        for n in range(33):
            expected = [j for kind in order[n % 7].tolist() for j in range(kind, 33, 7)]
            assert found.index[0, n].tolist() == expected[:8], (seed, n)


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("candidates", ["all", convnn.Random(9, 1), convnn.Grid(3), convnn.Window(3)], ids=str)
def test_all_tokens_alike(candidates, include_self, impl):
    """Nothing but the tie rule decides: the lowest candidates in order, behind the own token where it has a slot."""
    x = torch.ones(2, 12, 4)
    own = include_self or None
    options: dict[str, Any] = {"candidates": candidates, "include_self": own, "grid": (3, 4), "impl": impl}
    found = search(x, 4, deterministic=True, **options)
    allowed = {
        "all": lambda n: range(12),
        "Random": lambda n: convnn.Random(9, 1).draw(12, x.device).tolist(),
        "Grid": lambda n: [0, 1, 3, 4, 5, 7, 8, 9, 11],
        "Window": lambda n: [m for m in range(12) if abs(m // 4 - n // 4) < 2 and abs(m % 4 - n % 4) < 2],
    }["all" if candidates == "all" else type(candidates).__name__]
    own_slot = include_self or isinstance(candidates, convnn.Random | convnn.Grid)
    for n in range(12):
        expected = [n, *(m for m in allowed(n) if m != n)] if own_slot else list(allowed(n))
        assert found.index[:, n].tolist() == [expected[:4]] * 2, n


def test_torch_s_deterministic_mode_is_enough(impl):
    x = torch.ones(1, 40, 4)
    torch.use_deterministic_algorithms(True)
    try:
        found = search(x, 3, similarity="sqeuclidean", impl=impl)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.index.tolist() == [[[0, 1, 2]] * 40]


@pytest.mark.parametrize("name", FEATURES)
def test_without_a_tie_rule_the_similarities_are_the_same(name, impl):
    x = whole_tokens(0, 30).double()
    strict = search(x, 6, similarity=name, deterministic=True, impl=impl).similarity
    free = search(x, 6, similarity=name, impl=impl).similarity
    assert_close({"similarity": free}, {"similarity": strict})


# ------------------------------------------------------------------------------------------ zeros and coinciding tokens
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_zero_vector_has_cosine_zero_to_everything(dtype, impl):
    x = separated_tokens(1, 6, 3, dtype=dtype)
    x[0, 2] = 0
    x.requires_grad_()
    found = search(x, 6, impl=impl)
    assert (found.similarity[0, 2] == 0).all()
    assert (found.similarity[found.index == 2] == 0).all()
    gradient = with_gradients(found.similarity, {"x": x})["gradient of x"]
    assert gradient.isfinite().all()
    assert (gradient[0, 2] == 0).all()


@pytest.mark.parametrize("exponent", [-90, 90])
def test_a_vector_has_a_direction_whatever_its_length(exponent, impl):
    """Also where its squares are too small or too large for float32."""
    x = separated_tokens(1, 6, 3, dtype=torch.float32)
    expected, found = search(x, 6, impl=impl), search(x * 2.0**exponent, 6, impl=impl)
    assert torch.equal(found.index, expected.index)
    assert_close({"similarity": found.similarity}, {"similarity": expected.similarity})


@pytest.mark.parametrize("name", ["euclidean", convnn.Blend(0.5, "euclidean")], ids=str)
@pytest.mark.parametrize("weighting", ["identity", "softmax"])
def test_the_gradient_at_distance_zero_is_zero(weighting, name, impl):
    x = torch.tensor([[[1.0, 2.0], [1.0, 2.0], [4.0, 6.0]]], dtype=torch.float64)
    query, key = x.clone().requires_grad_(), x.clone().requires_grad_()
    options: dict[str, Any] = {"similarity": name, "weighting": weighting, "query_index": "same", "impl": impl}
    y = convnn.knn_aggregate(query, key, torch.randn(1, 3, 2, dtype=torch.float64), k=3, **options)
    assert all(part.isfinite().all() for part in with_gradients(y, {"query": query, "key": key}).values())
    alone = search(query[:, :1], 1, similarity="euclidean", impl=impl)
    assert float(alone.similarity.detach()) == 0
    assert (with_gradients(alone.similarity, {"query": query})["gradient of query"] == 0).all()


# ----------------------------------------------------------------------------------------------------- nan and infinity
@pytest.mark.parametrize("name", [*FEATURES, convnn.Blend(0.5)], ids=str)
def test_a_nan_token_ranks_first_and_stays_in_its_sample(name, impl):
    x = separated_tokens(2, 8, 3)
    clean = search(x, 3, similarity=name, impl=impl)
    x[0, 5, 1] = torch.nan
    found = search(x, 3, similarity=name, impl=impl)
    assert found.similarity[0, :, 0].isnan().all()
    assert torch.equal(found.index[1], clean.index[1])
    assert torch.equal(found.similarity[1], clean.similarity[1])
    y = convnn.knn_aggregate(x, x, x, k=3, similarity=name, weighting="softmax", impl=impl)
    assert y[0].isnan().any(dim=-1).all()
    assert y[1].isfinite().all()
    if isinstance(name, str):  # a blend divides by the deviation of the whole sample
        assert (found.index[0, :, 0] == 5)[torch.arange(8) != 5].all()
        assert found.similarity[0, torch.arange(8) != 5, 1:].isfinite().all()


@pytest.mark.parametrize("name", FEATURES)
def test_a_nan_query_spoils_its_own_row_only(name, impl):
    query, key = torch.randn(1, 5, 3, dtype=torch.float64), separated_tokens(1, 8, 3)
    clean = convnn.knn_search(query, key, 3, similarity=name, impl=impl)
    query[0, 2, 0] = torch.nan
    found = convnn.knn_search(query, key, 3, similarity=name, impl=impl)
    others = torch.arange(5) != 2
    assert found.similarity[0, 2].isnan().all()
    assert torch.equal(found.index[0, others], clean.index[0, others])
    assert torch.equal(found.similarity[0, others], clean.similarity[0, others])


@pytest.mark.parametrize("name", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("far", [-torch.inf, torch.inf, 1e30, 1e6, 1e4])
def test_a_far_token_is_nobody_s_neighbour_and_blurs_nobody_s(far, name, impl):
    """An infinite distance is the similarity -inf, the smallest; 1e30 squared is infinite in float32."""
    x = separated_tokens(1, 8, 3, dtype=torch.float32)
    x[0, 3, 0] = far
    found = search(x, 3, similarity=name, impl=impl)
    others = torch.arange(8) != 3
    near = x[:, others]
    expected = torch.arange(8)[others][search(near, 3, similarity=name, impl="reference").index]
    assert torch.equal(found.index[:, others], expected)
    last = search(x, 8, similarity=name, impl=impl).index[0, others, -1]
    assert (last == 3).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinite_inner_product(sign, impl):
    query = torch.tensor([[[1.0, 0.5], [-1.0, 0.5]]], dtype=torch.float64)
    key = torch.tensor([[[1.0, 0.0], [sign * torch.inf, 1.0], [2.0, 0.0], [3.0, 0.0]]], dtype=torch.float64)
    found = convnn.knn_search(query, key, 4, similarity="dot", impl=impl)
    ranks = {1: [[1, 3, 2, 0], [0, 2, 3, 1]], -1: [[3, 2, 0, 1], [1, 0, 2, 3]]}
    assert found.index.tolist() == [ranks[sign]]


# ---------------------------------------------------------------------------------------------------------------- masks
@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min, -1e30])
def test_a_masked_key_is_never_chosen_however_low_the_others_are(low, impl):
    query = torch.tensor([[[1.0, 0.0]]])
    key = torch.tensor([[[9.0, 0.0], [low, 0.0], [8.0, 0.0], [low, 0.0], [low, 0.0]]])
    mask = torch.tensor([[True, False, True, False, False]])
    found = convnn.knn_search(query, key, 3, similarity="dot", key_padding_mask=mask, deterministic=True, impl=impl)
    assert found.index.tolist() == [[[1, 3, 4]]]


@pytest.mark.parametrize("name", [*FEATURES, "spatial", convnn.Blend(0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_masked_nan_does_no_harm(name, dtype, impl):
    x = separated_tokens(1, 8, 3, dtype=dtype)
    mask = torch.arange(8).unsqueeze(0) == 4
    options: dict[str, Any] = {
        "similarity": name,
        "key_padding_mask": mask,
        "query_index": torch.arange(4),
        "impl": impl,
    }
    clean = convnn.knn_search(x[:, :4], x, 7, **options)
    assert not (clean.index == 4).any()
    if isinstance(name, str):  # a blend divides by the deviation of the whole sample
        x[0, 4] = torch.nan
        found = convnn.knn_search(x[:, :4], x, 7, **options)
        assert torch.equal(found.index, clean.index)
        assert found.similarity.isfinite().all()


# --------------------------------------------------------------------------------------------------- the smallest sizes
@pytest.mark.parametrize("name", [*FEATURES, "spatial", convnn.Blend(0.5)], ids=str)
@pytest.mark.parametrize(("batch", "tokens", "k"), [(0, 6, 3), (2, 1, 1), (2, 6, 6), (0, 1, 1)])
def test_small_and_empty(batch, tokens, k, name, impl):
    x = separated_tokens(batch, tokens, 4).requires_grad_()
    weight = torch.randn(5, 4, k, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"similarity": name, "impl": impl}
    found = search(x, k, **options)
    assert found.index.shape == found.similarity.shape == (batch, tokens, k)
    assert found.index.dtype == torch.int64
    if k == tokens:
        assert torch.equal(found.index.sort().values, torch.arange(k).expand(batch, tokens, k))
    y = convnn.knn_aggregate(x, x, x, weight, k=k, weighting="softmax", **options)
    assert y.shape == (batch, tokens, 5)
    if batch > 0 or impl != "reference":  # which has no query to differentiate there
        results = with_gradients(y, {"x": x, "weight": weight})
        assert all(part.isfinite().all() for part in results.values())
        assert batch > 0 or (results["gradient of weight"] == 0).all()


@pytest.mark.parametrize("similarity", ["dot", "spatial"])
def test_more_neighbours_than_the_corner_of_a_clipped_window_has(similarity, impl):
    x = torch.randn(1, 16, 4, dtype=torch.float64)
    options: dict[str, Any] = {"candidates": convnn.Window(3), "grid": (4, 4), "query_index": "same"}
    options |= {"include_self": True, "similarity": similarity, "impl": impl}
    assert convnn.knn_search(x, x, 4, **options).index.shape == (1, 16, 4)
    with pytest.raises(ValueError, match=r"k: expected at most 4 .*has only 3 candidates beside itself.*, got 5"):
        convnn.knn_search(x, x, 5, **options)
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 1] = True
    with pytest.raises(ValueError, match=r"k: expected at most 3 "):
        convnn.knn_search(x, x, 4, key_padding_mask=mask, **options)
