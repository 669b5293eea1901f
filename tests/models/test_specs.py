"""Candidates and similarities in words, and back."""

import pytest
import torch

from convnn import Blend, ConvNNError, Grid, Random, Window
from convnn.models import format_candidates, format_similarity, parse_candidates, parse_similarity

CANDIDATES = {
    "all": "all",
    "random:32": Random(32),
    "random:32,seed=7": Random(32, seed=7),
    "grid:5": Grid(5),
    "grid:5,margin=2": Grid(5, margin=2),
    "window:7": Window(7),
    "window:7x3": Window((7, 3)),
    "window:7x3,dilation=2x1,border=shift": Window((7, 3), (2, 1), border="shift"),
}
SIMILARITIES = {
    "cosine": "cosine",
    "dot": "dot",
    "spatial": "spatial",
    "blend:0.5": Blend(0.5),
    "blend:0.25,feature=euclidean": Blend(0.25, feature="euclidean"),
}


@pytest.mark.parametrize("text", CANDIDATES)
def test_candidates_go_there_and_back(text):
    assert parse_candidates(text) == CANDIDATES[text]
    assert format_candidates(CANDIDATES[text]) == text
    assert parse_candidates(CANDIDATES[text]) == CANDIDATES[text]


@pytest.mark.parametrize("text", SIMILARITIES)
def test_similarities_go_there_and_back(text):
    assert parse_similarity(text) == SIMILARITIES[text]
    assert format_similarity(SIMILARITIES[text]) == text
    assert parse_similarity(SIMILARITIES[text]) == SIMILARITIES[text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("randm:32", "candidates: expected one of 'all', 'random', .*got 'randm'; did you mean 'random'"),
        ("al", "got 'al'; did you mean 'all'"),
        ("random", "candidates: expected random:NUMBER, got 'random'; say how many, e.g. random:32"),
        ("grid:x", "candidates: expected grid:NUMBER, got 'grid:x'; say how many, e.g. grid:5"),
        ("grid:5x5", "candidates: expected grid:NUMBER"),
        ("random:0", "Random.r: expected a whole number of at least 1, got 0"),
        ("window:4", "Window.size: expected an odd size"),
        ("grid:5,margn=1", "candidates: expected fields margin after the number, got 'grid:5,margn=1'"),
        ("random:5,generator=1", "candidates: expected fields seed after the number"),
        ("window:7,border=clipp", "Window.border: .* did you mean 'clip'"),
    ],
)
def test_words_that_say_no_candidates(text, message):
    with pytest.raises(ConvNNError, match=message):
        parse_candidates(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", "similarity: expected one of 'cosine', .*'blend:0.5', got 'cosin'; did you mean 'cosine'"),
        ("blend", "similarity: expected blend:NUMBER, got 'blend'; give the share of the features, e.g. blend:0.5"),
        ("blend:2", r"Blend.lam: expected a number in \[0, 1\], got 2.0"),
        ("blend:0.5,feature=dot", "Blend.feature: expected one of"),
    ],
)
def test_words_that_say_no_similarity(text, message):
    with pytest.raises(ConvNNError, match=message):
        parse_similarity(text)


@pytest.mark.parametrize("candidates", [torch.tensor([1, 2]), Random(3, generator=torch.Generator())])
def test_what_no_words_can_say(candidates):
    with pytest.raises(ConvNNError, match=r"candidates: expected what can be written down .* use convnn.convert"):
        format_candidates(candidates)
