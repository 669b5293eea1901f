"""Derivatives against finite differences, and where no gradient may flow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import convnn
from convnn.testing import assert_close, function_with_gradients, separated_tokens

from .layers import FEATURES, IMPLEMENTATIONS, LAYERS, SIMILARITIES, WEIGHTINGS, example, make

K = 3


def inputs(*names: str) -> dict[str, Tensor]:
    """Small tensors in float64 that ask for gradients; queries and keys are far from a change of neighbours."""
    query = torch.randn(1, 6, 3, dtype=torch.float64)
    made = {
        "query": query,
        "key": separated_tokens(1, 6, 3, queries=query, gap=1e-3),
        "value": torch.randn(1, 6, 4, dtype=torch.float64),
        "weight": torch.randn(6, 2, K, dtype=torch.float64),
        "bias": torch.randn(6, dtype=torch.float64),
    }
    return {name: made[name].requires_grad_() for name in names or made}


def operator(options: dict[str, Any]) -> Any:
    def aggregate(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        given = {"k": K, "groups": 2, "grid": (2, 3), "query_index": "same", **options}
        return convnn.knn_aggregate(query, key, value, weight, bias, **given)

    return aggregate


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_first_derivatives(similarity, weighting, include_self):
    options = {"similarity": SIMILARITIES[similarity], "weighting": weighting, "include_self": include_self}
    assert torch.autograd.gradcheck(operator(options), tuple(inputs().values()))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_second_derivatives(similarity, weighting):
    options = {"similarity": SIMILARITIES[similarity], "weighting": weighting}
    if weighting == "softmax":
        options["temperature"] = 0.7
    # Along random directions: one element at a time, as for the first ones, takes a hundred times as long.
    assert torch.autograd.gradgradcheck(operator(options), tuple(inputs().values()), fast_mode=True)


@pytest.mark.parametrize("candidates", [convnn.Random(4, 0), convnn.Grid(2), convnn.Window(3)], ids=str)
def test_derivatives_among_fewer_candidates(candidates):
    options = {"similarity": "cosine", "weighting": "softmax", "candidates": candidates}
    assert torch.autograd.gradcheck(operator(options), tuple(inputs().values()))


@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_layers(name):
    layer, x = make(name).double(), example(name, batch=1, dtype=torch.float64).requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        torch.manual_seed(0)  # of the candidates
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

    # The operator's own derivatives are checked one by one; of a layer's thousands, random sums of them all.
    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)


# ------------------------------------------------------------------------------------------------ where gradients flow
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_index_has_no_gradient(impl):
    given = inputs("query", "key")
    found = convnn.knn_search(given["query"], given["key"], K, impl=impl)
    assert not found.index.requires_grad
    assert found.similarity.requires_grad


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_ones_do_not_read_the_similarities(similarity, impl):
    """Constant weights: a change of the queries that keeps the neighbours changes nothing."""
    options = {"similarity": SIMILARITIES[similarity], "weighting": "ones", "impl": impl}
    gradients = function_with_gradients(operator(options), **inputs())
    for name in ("query", "key"):
        assert (gradients[f"gradient of {name}"] == 0).all()
    for name in ("value", "weight", "bias"):
        assert gradients[f"gradient of {name}"].abs().sum() > 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("weighting", ["identity", "softmax"])
@pytest.mark.parametrize("similarity", [name for name in SIMILARITIES if name != "spatial"])
def test_keys_that_no_query_chose_have_no_gradient(similarity, weighting, impl):
    """Gradients reach keys and values through the k similarities that were selected, and no other pair."""
    query = torch.randn(2, 2, 3, dtype=torch.float64)
    given = {
        "query": query,
        "key": separated_tokens(2, 9, 3, queries=query),
        "value": torch.randn(2, 9, 4, dtype=torch.float64),
    }
    options: dict[str, Any] = {
        "similarity": SIMILARITIES[similarity], "k": 2, "query_index": torch.tensor([0, 4]), "impl": impl,
    }  # fmt: skip
    index = convnn.knn_search(given["query"], given["key"], **options).index
    chosen = torch.zeros(2, 9, dtype=torch.bool).scatter(1, index.flatten(1), True)
    assert not chosen.all(dim=1).any()

    def aggregate(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return convnn.knn_aggregate(query, key, value, weighting=weighting, **options)

    gradients = function_with_gradients(aggregate, **given)
    assert torch.equal(gradients["gradient of value"].abs().sum(-1) > 0, chosen)
    if similarity.startswith("blend"):  # every key takes part in the deviation that features are divided by
        return
    assert torch.equal(gradients["gradient of key"].abs().sum(-1) > 0, chosen)
    assert (gradients["gradient of query"].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("similarity", FEATURES)
def test_the_gradient_is_that_of_the_chosen_pairs_alone(similarity, impl):
    """The same numbers as for an index that was written down before, as a constant."""
    given = inputs("query", "key", "value")
    options: dict[str, Any] = {"similarity": similarity}
    index = convnn.knn_search(given["query"], given["key"], K, **options).index

    def frozen(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (t[0][index] for t in (key, value))
        pairs = {
            "cosine": torch.cosine_similarity(query.unsqueeze(2), keys, dim=-1),
            "dot": torch.einsum("bnc,bnkc->bnk", query, keys) / 3**0.5,
            "sqeuclidean": -(query.unsqueeze(2) - keys).square().sum(-1),
            "euclidean": -(query.unsqueeze(2) - keys).norm(dim=-1),
        }[similarity]
        return torch.einsum("bnk,bnkc->bnc", pairs.softmax(-1), values)

    def aggregate(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return convnn.knn_aggregate(query, key, value, k=K, weighting="softmax", impl=impl, **options)

    assert_close(function_with_gradients(aggregate, **given), function_with_gradients(frozen, **given))
