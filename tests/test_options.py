"""Options: each has one type, one default and one check, wherever it is given."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import torch

import convnn
from convnn import ConvNN2d, ConvNNAttention, ConvNNError, HybridAttention, HybridConvNN2d
from convnn._options import GatherKeywords, GatherOptions, SearchKeywords, SearchOptions, names_of
from convnn.nn import options as layers

KEYWORDS: dict[type, tuple[type, set[str]]] = {  # the typed keywords of each kind, and its fields that are none
    SearchKeywords: (SearchOptions, set()),
    GatherKeywords: (GatherOptions, set()),
    layers.LayerKeywords: (layers.LayerOptions, {"k"}),
    layers.HeadsKeywords: (layers.HeadsOptions, set()),
    layers.ConvNNKeywords: (layers.ConvNNOptions, {"k"}),
    layers.HybridKeywords: (layers.ConvNNOptions, {"query_margin"}),
}


@pytest.mark.parametrize("keywords", KEYWORDS, ids=lambda kind: kind.__name__)
def test_the_typed_keywords_are_the_fields(keywords: type) -> None:
    kind, without = KEYWORDS[keywords]
    keys: set[str] = keywords.__required_keys__ | keywords.__optional_keys__  # type: ignore[attr-defined]
    assert keys == names_of(kind) - without


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (convnn.knn_search, (SearchOptions,)),
        (convnn.knn_gather, (GatherOptions,)),
        (convnn.knn_aggregate, (SearchOptions, GatherOptions)),
        (convnn.explain_choice, (SearchOptions, GatherOptions)),
        (ConvNN2d, (layers.ConvNNOptions,)),
        (ConvNNAttention, (layers.HeadsOptions,)),
        (HybridAttention, (layers.HeadsOptions,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_signatures_show_every_option_with_its_default(function: Any, kinds: tuple[type, ...]) -> None:
    shown = inspect.signature(function).parameters
    for kind in kinds:
        for field in dataclasses.fields(kind):
            assert shown[field.name].default == field.default, field.name
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in shown.values())


def test_a_changed_attribute_acts() -> None:
    x = torch.randn(1, 4, 6, 6)
    layer = ConvNN2d(4, 4, 3)
    for name, value in (("similarity", "sqeuclidean"), ("candidates", torch.arange(9)), ("weighting", "softmax")):
        setattr(layer, name, value)
        other = ConvNN2d(4, 4, 3, **{n: getattr(layer, n) for n in ("similarity", "candidates", "weighting")})
        other.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), other(x)), name


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("similarity", "cosin", "did you mean 'cosine'"),
        ("candidates", "random", "say how many"),
        ("weighting", "max", "weighting: expected one of"),
        ("temperature", 2.0, "temperature: expected 1 unless weighting is 'softmax'"),
        ("scale", 0.5, "scale: expected None unless similarity is 'dot'"),
        ("impl", "fast", "impl: expected"),
        ("k", None, "k: expected a number"),
        ("aggregation", "sum", "which the layer was made with"),
        ("projection", True, "which the layer was made with"),
        ("unshuffle", 2, "which the layer was made with"),
    ],
)
def test_a_changed_attribute_is_checked(name: str, value: object, message: str) -> None:
    layer = ConvNN2d(4, 4, 3)
    before = layer.options
    with pytest.raises(ConvNNError, match=message):
        setattr(layer, name, value)
    assert layer.options is before


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda ratio, **o: HybridConvNN2d(4, 8, branch_ratio=ratio, **o), {"similarity": "cosin"}),
        (lambda ratio, **o: HybridConvNN2d(4, 8, branch_ratio=ratio, **o), {"projection": True}),
        (lambda ratio, **o: HybridConvNN2d(4, 8, branch_ratio=ratio, **o), {"k": None}),
        (lambda ratio, **o: HybridConvNN2d(4, 8, branch_ratio=ratio, **o), {"query_margin": 1}),
        (lambda ratio, **o: HybridConvNN2d(4, 8, branch_ratio=ratio, **o), {"convnn_bias": "yes"}),
        (lambda ratio, **o: HybridConvNN2d(4, 8, branch_ratio=ratio, **o), {"dtype": torch.int64}),
        (lambda ratio, **o: HybridAttention(8, 2, branch_ratio=ratio, **o), {"candidates": "random"}),
        (lambda ratio, **o: HybridAttention(8, 2, branch_ratio=ratio, partner="conv", **o), {"attn_drop": 2.0}),
        (lambda ratio, **o: HybridAttention(8, 2, branch_ratio=ratio, partner="conv", **o), {"gated": 1}),
        (lambda ratio, **o: HybridAttention(8, 2, branch_ratio=ratio, **o), {"qk_norm": True, "similarity": "spatial"}),
        (lambda ratio, **o: HybridAttention(8, 2, branch_ratio=ratio, **o), {"query_margin": 1}),
    ],
)
def test_options_of_a_branch_that_is_not_there_are_checked_too(make: Any, options: Any, ratio: float) -> None:
    with pytest.raises(ConvNNError, match=next(reversed(options)) if "qk_norm" not in options else "qk_norm"):
        make(ratio, **options)
