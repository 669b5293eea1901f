"""The chooser: which implementation runs, for functions and for layers, and how a new one joins."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import convnn
from convnn import native
from convnn.impl import choose
from convnn.impl.base import Implementation


class OwnToken(Implementation):
    """A toy: with one neighbour, the query itself, the sum is the value."""

    name, reason = "own token", "the only neighbour is the token itself"

    def why_not(self, problem):
        both = problem.search is not None and problem.gather is not None
        alone = both and problem.search.k == 1 and problem.search.include_self and problem.gather.weight is None
        return None if alone else "there are others"

    def aggregate(self, search, gather):
        return gather.value


def test_a_new_implementation_is_a_class_and_a_line(monkeypatch):
    x = torch.randn(2, 5, 3)
    expected = convnn.knn_aggregate(x, x, x, k=1, include_self=True)
    monkeypatch.setattr(choose, "IMPLEMENTATIONS", [OwnToken(), *choose.IMPLEMENTATIONS])
    assert convnn.explain_choice(x, x, x, k=1, include_self=True).impl == "own token"
    assert convnn.knn_aggregate(x, x, x, k=1, include_self=True) is x
    assert torch.equal(x, expected)
    with pytest.raises(convnn.ConvNNError, match="'own token' cannot: there are others"):
        convnn.knn_aggregate(x, x, x, k=2, impl="own token")
    layer = convnn.ConvNN1d(3, 3, k=1, aggregation="sum", impl="own token")
    assert layer(torch.ones(1, 3, 4)).shape == (1, 3, 4)


CONV = nn.Conv2d(4, 6, 3, padding=1)
# What runs float32 tokens that no special case takes.
GENERAL = "tiled" if native.why_not() else "native"
LAYERS = {
    "conv": (lambda: convnn.ConvNN2d.from_conv(CONV), "conv"),
    "random": (lambda: convnn.ConvNN2d(4, 6, candidate_padding=1, candidates=convnn.Random(9)), "project_first"),
    "random, more than there are": (lambda: convnn.ConvNN2d(4, 6, candidates=convnn.Random(99)), GENERAL),
    "grid": (lambda: convnn.HybridConvNN2d(4, 6, candidates=convnn.Grid(3)), "project_first"),
    "all": (lambda: convnn.ConvNN2d(4, 6), GENERAL),
    "asked for": (lambda: convnn.ConvNN2d(4, 6, impl="dense"), "dense"),
    "attention": (lambda: convnn.ConvNN2d(4, 4, None, similarity="dot", weighting="softmax", aggregation="sum"),
                  "sdpa"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_says_what_it_runs(name, caplog):
    make, impl = LAYERS[name]
    layer, x = make(), torch.randn(2, 4, 6, 6)
    assert convnn.explain_choice(layer, x).impl == impl
    with caplog.at_level(logging.DEBUG, logger="convnn"):
        layer(x)
    assert caplog.records[-1].args[0] == impl


@pytest.mark.parametrize("layer", [convnn.ConvNNAttention(8, 2, k=3), convnn.HybridAttention(8, 2, k=3)], ids=str)
def test_attention_layers_say_it_too(layer):
    assert convnn.explain_choice(layer, torch.randn(1, 5, 8)).impl == GENERAL
    every = convnn.ConvNNAttention(8, 2, k=None, aggregation="sum")
    assert convnn.explain_choice(every, torch.randn(1, 5, 8)).impl == "sdpa"


def test_what_cannot_be_explained_is_refused():
    x = torch.randn(1, 4, 6, 6)
    with pytest.raises(convnn.ConvNNError, match=r"^layer: expected a layer of convnn and its input, .* got Conv2d"):
        convnn.explain_choice(CONV, x)
    with pytest.raises(convnn.ConvNNError, match=r"^k: expected what knn_aggregate takes, got nothing"):
        convnn.explain_choice(x[0], x[0], x[0])


def test_a_layer_follows_its_attributes():
    """What runs is chosen at every call, from what the layer is then."""
    x = torch.randn(2, 4, 6, 6)
    layer = convnn.ConvNN2d.from_conv(CONV)
    assert torch.equal(layer(x), CONV(x))
    layer.similarity, layer.candidates, layer.include_self = "cosine", "all", True
    expected = convnn.ConvNN2d(4, 6, 9, candidate_padding=1)
    expected.load_state_dict({"weight": CONV.weight.detach().flatten(2), "bias": CONV.bias.detach()})
    torch.testing.assert_close(layer(x), expected(x))
    layer.candidates = torch.tensor([0, 9, 18])
    layer.k, layer.weight = 3, nn.Parameter(layer.weight[..., :3].detach())
    assert convnn.explain_choice(layer, x).impl == "project_first"
    assert torch.isin(layer.neighbors(x).index[..., 1:], torch.tensor([0, 9, 18])).all()
