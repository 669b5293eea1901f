"""The oracle itself, against values worked by hand and against brute force that shares no code with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import convnn
from convnn.testing import assert_close, relative_error, separated_tokens

from ..layers import IMPLEMENTATIONS


def similarities(query: list[float], keys: list[list[float]], impl: str, **options: Any) -> list[float]:
    """The similarity of one query to every key, in the order of the keys."""
    q, k = torch.tensor([[query]], dtype=torch.float64), torch.tensor([keys], dtype=torch.float64)
    found = convnn.knn_search(q, k, len(keys), impl=impl, **options)
    return torch.zeros(1, 1, len(keys), dtype=torch.float64).scatter(2, found.index, found.similarity)[0, 0].tolist()


# The query (3, 4), of length 5, and five keys.
HAND_KEYS = [[3.0, 4.0], [0.0, 0.0], [-4.0, 3.0], [6.0, 8.0], [1.0, 0.0]]
BY_HAND = {
    "cosine": [1.0, 0.0, 0.0, 1.0, 0.6],
    "dot": [25 / math.sqrt(2), 0.0, 0.0, 50 / math.sqrt(2), 3 / math.sqrt(2)],
    "sqeuclidean": [0.0, -25.0, -50.0, -25.0, -20.0],
    "euclidean": [0.0, -5.0, -math.sqrt(50), -5.0, -math.sqrt(20)],
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", BY_HAND)
def test_similarities_worked_by_hand(name, impl):
    assert similarities([3.0, 4.0], HAND_KEYS, impl, similarity=name) == pytest.approx(BY_HAND[name], abs=1e-14)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_scale_of_dot(impl):
    assert similarities([3.0, 4.0], HAND_KEYS, impl, similarity="dot", scale=2.0) == pytest.approx([50, 0, 0, 100, 6])


# Three tokens 1, 2, 3 (standard deviation 1) at the positions -1, 0, 1: half of each is compared.
BLENDED = {
    "cosine": [0.0, 1 / math.sqrt(2), 1.0],
    "sqeuclidean": [-2.0, -0.5, 0.0],
    "euclidean": [-math.sqrt(2), -math.sqrt(0.5), 0.0],
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("feature", BLENDED)
def test_a_blend_worked_by_hand(feature, impl):
    tokens = torch.tensor([[[1.0], [2.0], [3.0]]], dtype=torch.float64)
    found = convnn.knn_search(tokens, tokens, 3, similarity=convnn.Blend(0.5, feature), impl=impl)
    # The last token is (1.5, 0.5), the others (0.5, -0.5) and (1, 0), but for the 1e-6 beside the deviation.
    expected = {"cosine": [0.5 / math.sqrt(2.5 * 0.5), 1.5 / math.sqrt(2.5), 1.0]}.get(feature, BLENDED[feature])
    row = found.similarity[0, 2].tolist()
    assert found.index[0, 2].tolist() == [2, 1, 0]
    assert row == pytest.approx(expected[::-1], abs=2e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_blend_at_its_ends(impl):
    """At 1 it is the similarity of features, at 0 the one of coordinates, which run from -1 to 1 along each axis."""
    x = separated_tokens(1, 12, 4)
    ends = {lam: convnn.knn_search(x, x, 12, similarity=convnn.Blend(lam), grid=(3, 4), impl=impl) for lam in (0, 1)}
    features = convnn.knn_search(x, x, 12, similarity="cosine", impl=impl)
    assert torch.equal(ends[1].index, features.index)
    points = torch.tensor([[[2 * (j % 4) / 3 - 1, j // 4 - 1.0] for j in range(12)]], dtype=torch.float64)
    assert_close(
        {"similarity": ends[0].similarity}, {"similarity": convnn.knn_search(points, points, 12, impl=impl).similarity}
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("query", "k", "index", "similarity"),
    [
        (6, 1, [6], [0]),
        (6, 5, [1, 5, 6, 7, 11], [-1, -1, 0, -1, -1]),  # the plus
        (6, 9, [0, 1, 2, 5, 6, 7, 10, 11, 12], [-1, -1, -1, -1, 0, -1, -1, -1, -1]),  # the 3 x 3 window
        (6, 10, [0, 1, 2, 5, 6, 7, 8, 10, 11, 12], [-1, -1, -1, -1, 0, -1, -2, -1, -1, -1]),  # and two to the right
        (0, 3, [0, 1, 5], [0, -1, -1]),  # a corner has what there is
        (0, 5, [0, 1, 2, 5, 6], [0, -1, -2, -1, -1]),  # of (0, 2) and (2, 0) the first in raster order
        (19, 4, [13, 14, 18, 19], [-1, -1, -1, 0]),
    ],
)
def test_spatial_neighbours_worked_by_hand(query, k, index, similarity, impl):
    """On a map of 4 x 5: Chebyshev distance, then Euclidean, then raster order; slots in raster order."""
    x = torch.randn(1, 20, 3, dtype=torch.float64)
    found = convnn.knn_search(x, x, k, similarity="spatial", grid=(4, 5), impl=impl)
    assert found.index[0, query].tolist() == index
    assert found.similarity[0, query].tolist() == similarity


def brute_force(query: Tensor, key: Tensor, name: str) -> Tensor:
    """All similarities, by torch's own functions."""
    if name == "cosine":
        return F.cosine_similarity(query.unsqueeze(2), key.unsqueeze(1), dim=-1, eps=0)
    if name == "dot":
        return torch.einsum("bnc,bmc->bnm", query, key) / math.sqrt(query.shape[-1])
    distance = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")
    return -(distance**2) if name == "sqeuclidean" else -distance


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize(("queries", "k"), [(None, 1), (None, 4), (7, 4), (7, 10)])
def test_brute_force_over_all_pairs(name, queries, k, impl):
    query = None if queries is None else torch.randn(2, queries, 5, dtype=torch.float64)
    key = separated_tokens(2, 10, 5, queries=query)
    query = key if query is None else query
    expected = brute_force(query, key, name).sort(-1, descending=True)
    found = convnn.knn_search(query, key, k, similarity=name, impl=impl)
    assert torch.equal(found.index, expected.indices[..., :k])
    assert relative_error(found.similarity, expected.values[..., :k]) < 1e-14


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("include_self", [False, True])
def test_brute_force_with_a_mask_and_the_own_token(include_self, impl):
    x = separated_tokens(2, 10, 5)
    masked = [{3, 4}, {0}]
    mask = torch.tensor([[j in gone for j in range(10)] for gone in masked])
    options = {"similarity": "euclidean", "include_self": include_self, "key_padding_mask": mask}
    index = convnn.knn_search(x, x, 4, impl=impl, **options).index
    for b in range(2):
        for n in range(10):
            others = [j for j in range(10) if j not in masked[b] and not (include_self and j == n)]
            nearest = sorted(others, key=lambda j: float((x[b, n] - x[b, j]).norm()))
            assert index[b, n].tolist() == ([n, *nearest[:3]] if include_self else nearest[:4])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("weighting", ["ones", "identity", "softmax"])
def test_gathering_is_a_1d_convolution_over_the_concatenated_neighbours(weighting, groups, impl):
    """Kernel k and stride k over (B, C, N k), as the method puts it."""
    value = torch.randn(2, 10, 4, dtype=torch.float64)
    weight, bias = torch.randn(8, 4 // groups, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    found = convnn.Neighbors(torch.randn(2, 6, 3, dtype=torch.float64), torch.randint(10, (2, 6, 3)))
    y = convnn.knn_gather(value, found, weight, bias, weighting=weighting, groups=groups, impl=impl)
    rho = {
        "ones": torch.ones(2, 6, 3, dtype=torch.float64),
        "identity": found.similarity,
        "softmax": found.similarity.exp() / found.similarity.exp().sum(-1, keepdim=True),
    }[weighting]
    neighbours = torch.stack([value[b][found.index[b]] for b in range(2)]) * rho.unsqueeze(-1)
    concatenated = neighbours.flatten(1, 2).transpose(1, 2)
    expected = F.conv1d(concatenated, weight, bias, stride=3, groups=groups).transpose(1, 2)
    assert_close({"y": y}, {"y": expected})
