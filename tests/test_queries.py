"""Who the queries are is said, never guessed; and what follows from it for the self slot and for random candidates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

import convnn
from convnn import ConvNN2d, ConvNNAttention, ConvNNMultiheadAttention, Grid, Random, knn_search

FEW = {"random": Random(5, 1), "grid": Grid(5), "positions": torch.tensor([0, 2, 3, 5, 6])}


def positions(candidates: object) -> Tensor:
    if isinstance(candidates, Random):
        return candidates.draw(7, torch.device("cpu"))
    return torch.arange(5) * 6 // 4 if isinstance(candidates, Grid) else FEW["positions"]


@pytest.mark.parametrize("name", FEW)
def test_cross_attention_of_equal_lengths_is_no_self_attention(name):
    """As many queries as keys, of other tokens: the best candidates, none of them because of where it stands."""
    query, key = torch.randn(2, 7, 4), torch.randn(2, 7, 4)
    listed = positions(FEW[name])
    expected = listed[(query @ key[:, listed].mT).topk(3).indices]
    assert torch.equal(knn_search(query, key, 3, similarity="dot", candidates=FEW[name]).index, expected)
    fewer = knn_search(query[:, :6], key, 3, similarity="dot", candidates=FEW[name]).index
    assert torch.equal(fewer, expected[:, :6])


def test_multihead_attention_to_a_memory_of_equal_length():
    layer = ConvNNMultiheadAttention(8, 2, batch_first=True, k=3, candidates=FEW["positions"]).eval()
    query, memory = torch.randn(1, 7, 8), torch.randn(1, 7, 8)
    whole = layer(query, memory, memory)[1]
    assert torch.equal(whole[:, :6], layer(query[:, :6], memory, memory)[1])
    own = layer(memory, memory, memory)[1]
    assert (own[0].diagonal() > 0).all()


def test_the_same_tensor_or_the_word_makes_queries_keys():
    x = torch.randn(2, 7, 4)
    for query, options in ((x, {}), (x.clone(), {"query_index": "same"})):
        assert torch.equal(
            knn_search(query, x, 3, include_self=True, **options).index[..., 0], torch.arange(7).expand(2, -1)
        )
    with pytest.raises(convnn.ConvNNError, match=r"^include_self: .*not the same tensor.*pass query_index: 'same'"):
        knn_search(x.clone(), x, 3, include_self=True)
    with pytest.raises(convnn.ConvNNError, match=r"^key: expected 5 tokens \(query_index='same'\)"):
        knn_search(x[:, :5], x, 3, query_index="same")


@pytest.mark.parametrize("name", FEW)
def test_a_self_slot_that_is_not_wanted_is_refused(name):
    x = torch.randn(1, 7, 4)
    with pytest.raises(convnn.ConvNNError, match=r"^include_self: .* got False; leave it out"):
        knn_search(x, x, 3, candidates=FEW[name], include_self=False)
    assert torch.equal(knn_search(x, x, 3, candidates=FEW[name]).index[0, :, 0], torch.arange(7))
    stranger = torch.randn(1, 6, 4)
    assert knn_search(stranger, x, 3, candidates=FEW[name], include_self=False).index.shape == (1, 6, 3)


@pytest.mark.parametrize("layer", [ConvNN2d(4, 4, 3, candidates=Random(36)), ConvNN2d(4, 4, 3, candidates=Random(37))])
def test_all_tokens_as_candidates_are_all_tokens(layer):
    x = torch.randn(1, 4, 6, 6)
    every = ConvNN2d(4, 4, 3)
    assert torch.equal(layer.neighbors(x).index, every.neighbors(x).index)
    attention = ConvNNAttention(8, 2, k=3, candidates=Random(9)), ConvNNAttention(8, 2, k=3, candidates=Random(10))
    attention[1].load_state_dict(attention[0].state_dict())
    tokens = torch.randn(1, 9, 8)
    assert torch.equal(*(part.neighbors(tokens).index for part in attention))


def test_layers_draw_differently_in_evaluation_and_their_state_says_how():
    x = torch.randn(1, 4, 6, 6)
    make = lambda: ConvNN2d(4, 4, 5, candidates=Random(9)).eval()  # noqa: E731
    first, second = make(), make()
    drawn = [set(layer.neighbors(x).index[..., 1:].flatten().tolist()) for layer in (first, second)]
    assert drawn[0] != drawn[1]
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), first(x))
    assert torch.equal(functional_call(second, first.state_dict(), (x,)), first(x))
    every = ConvNN2d(4, 4, 5)
    assert set(every.state_dict()) == {"weight", "bias"}
    every.load_state_dict(first.state_dict())
    second.load_state_dict(every.state_dict())
    assert torch.equal(second(x), first(x))
