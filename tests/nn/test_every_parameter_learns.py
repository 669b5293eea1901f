"""No layer has a parameter that no gradient reaches: DistributedDataParallel stops at its second step over one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
from torch import nn

from convnn import Blend, ConvNN1d, ConvNNError, Grid, convert

from ..layers import KINDS, WEIGHTINGS, answer, example

# What a kind has besides, all of it learned.
EXTRAS: dict[str, list[dict[str, Any]]] = {
    "ConvNN": [{"projection": True}],
    "hybrid": [{"projection": True}],
    "attention": [{"qk_norm": True, "scale_norm": True}],
    "hybrid attention": [{"qk_norm": True, "gated": True}],
}


def cannot_learn(options: dict[str, Any]) -> bool:
    """By the equations: whether queries and keys only choose, are not read, or are weighted by a constant."""
    chosen_only = options["weighting"] == "ones" or options["similarity"] in ("spatial", Blend(0.0))
    return chosen_only or (options["weighting"] == "softmax" and options["k"] == 1)


@pytest.mark.parametrize("aggregation", ["standard", "depthwise", "depthwise_separable"])
@pytest.mark.parametrize("name", KINDS)
def test_a_gradient_reaches_every_parameter(name: str, aggregation: str) -> None:
    make, x = KINDS[name], example(name)
    similarities = ["cosine", "dot", "euclidean", "spatial", Blend(0.5), Blend(0.0)]
    extras = [{}, *EXTRAS.get(name, [])]
    sweep = itertools.product(extras, similarities, WEIGHTINGS, [1, 3], ["all", Grid(3)])
    for extra, similarity, weighting, k, candidates in sweep:
        options = {"similarity": similarity, "weighting": weighting, "k": k, "candidates": candidates}
        if extra and cannot_learn(options):
            with pytest.raises(ConvNNError, match=r"^(projection|qk_norm): expected False with .*, got True; leave"):
                make(**options, **extra, aggregation=aggregation)
            continue
        layer = make(**options, **extra, aggregation=aggregation)
        answer(layer, x).square().sum().backward()
        assert not [name for name, p in layer.named_parameters() if p.grad is None], options


@pytest.mark.parametrize("options", [{"projection": True}, {"projection": True, "similarity": "spatial", "k": 9}])
def test_the_refusal_says_what_to_do(options: dict[str, Any]) -> None:
    with pytest.raises(ConvNNError, match="leave projection out, or use weighting='softmax' or 'identity'"):
        ConvNN1d(4, 4, **options)


def test_norms_of_an_attention_that_is_replaced_are_to_learn_too() -> None:
    attention = timm.layers.Attention(8, 2, qk_norm=True, norm_layer=nn.LayerNorm)
    with pytest.raises(ConvNNError, match="qk_norm: expected False with weighting='ones'"):
        convert(attention, "convnn", weighting="ones", k=3)
    convert(attention, "convnn", k=3)(example("attention")).sum().backward()
