"""Misuse of the operator and its specs: the message names the argument, what is allowed, what was given, the fix."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from convnn import (
    Blend,
    ConvNNError,
    Grid,
    Neighbors,
    QueryGrid,
    Random,
    Window,
    explain_choice,
    knn_aggregate,
    knn_gather,
    knn_search,
)

X = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
NEAREST = knn_search(X, X, 3)
GRID = (3, 4)
NAN = float("nan")


def search(query: Any = X, key: Any = X, k: Any = 3, **options: Any) -> Neighbors:
    return knn_search(query, key, k, **options)


def aggregate(value: Any = X, weight: Any = "fitting", bias: Any = None, *, k: Any = 3, **options: Any) -> Tensor:
    return knn_aggregate(X, X, value, torch.zeros(4, 4, 3) if isinstance(weight, str) else weight, bias, k=k, **options)


def gather(similarity: Any = NEAREST.similarity, index: Any = NEAREST.index, value: Tensor = X) -> Tensor:
    return knn_gather(value, Neighbors(similarity, index))


def tokens(batch: int = 2, count: int = 12, channels: int = 4) -> Tensor:
    return torch.zeros(batch, count, channels)


def mask(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bool)


def index(*positions: int) -> Tensor:
    return torch.tensor(positions)


ALL_BUT_TWO = torch.arange(12).expand(2, 12) >= 2
A_SHIFTED_QUERY_GRID = QueryGrid((1,), (12,), (1,))

# id: what the user writes, the argument that the message must name, and fragments that it must contain.
Misuse = tuple[Callable[[], object], str, tuple[str, ...]]

NEIGHBOUR_COUNT: dict[str, Misuse] = {
    "k above the keys": (lambda: search(k=13), "k", ("at most 12", "12 keys", "got 13", "lower k")),
    "k zero": (lambda: search(k=0), "k", ("at least 1", "got 0")),
    "k negative": (lambda: search(k=-1), "k", ("at least 1", "got -1")),
    "k a bool": (lambda: search(k=True), "k", ("whole number", "got True")),
    "k a float": (lambda: search(k=3.0), "k", ("whole number", "got 3.0")),
    "k a string": (lambda: search(k="3"), "k", ("whole number", "got '3'")),
    "k above itself and the candidates": (
        lambda: search(X[:, :5], query_index=torch.arange(5), k=5, candidates=index(7, 8, 9)), "k", ("at most 4",)),
    "k above random, itself drawn": (lambda: search(k=5, candidates=Random(4)), "k", ("at most 4", "slot 0", "got 5")),
    "k above grid": (lambda: search(k=6, candidates=Grid(2), grid=GRID), "k", ("at most 4", "4 candidates")),
    "k above positions": (lambda: search(k=5, candidates=index(1, 2, 3)), "k", ("at most 3", "3 candidates", "got 5")),
    "k above the window": (lambda: search(k=10, candidates=Window(3), grid=GRID), "k", ("window holds 9", "got 10")),
    "k above a clipped window": (
        lambda: search(k=9, candidates=Window(3), grid=GRID), "k", ("at most 4", "borders", "border='shift'")),
    "k above what a mask leaves": (
        lambda: search(key_padding_mask=ALL_BUT_TWO), "k", ("at most 2", "masks", "got 3", "mask fewer keys")),
    "k and itself above what a mask leaves": (
        lambda: search(key_padding_mask=ALL_BUT_TWO, include_self=True, k=4), "k", ("at most", "beside itself")),
    "k left open where keys are masked": (
        lambda: search(k=None, key_padding_mask=mask(2, 12)), "k", ("a number where keys are masked", "got None")),
    "k left open where keys are masked, by ones": (
        lambda: aggregate(weight=None, k=None, key_padding_mask=mask(2, 12)), "k", ("softmax", "got None")),
    "no keys": (lambda: search(tokens(2, 0), tokens(2, 0), 1), "k", ("at most 0", "0 keys")),
    "k too large, by explain_choice": (lambda: explain_choice(X, X, X, k=13), "k", ("at most 12", "got 13")),
}  # fmt: skip

TENSORS: dict[str, Misuse] = {
    "a map": (
        lambda: search(torch.zeros(2, 4, 3, 4)), "query", ("3 axes", "(2, 4, 3, 4)", "flatten(2).transpose(1, 2)")),
    "one sample": (lambda: search(X, X[0]), "key", ("3 axes", "(12, 4)")),
    "integers": (lambda: search(X.long(), X.long()), "query", ("floating-point", "torch.int64", ".float()")),
    "complex numbers": (lambda: search(X.cfloat(), X.cfloat()), "query", ("real floating-point", "torch.complex64")),
    "an array": (lambda: search(X.numpy()), "query", ("a tensor", "ndarray", "torch.Tensor")),
    "no key": (lambda: search(X, None), "key", ("a tensor", "NoneType")),
    "channels": (lambda: search(X, tokens(channels=5)), "key", ("4 channels as in query", "got 5")),
    "no channels": (lambda: search(tokens(channels=0), tokens(channels=0)), "query", ("at least one channel",)),
    "batch": (lambda: search(X, tokens(batch=3)), "key", ("2 samples as in query", "got 3")),
    "dtype": (lambda: search(X, X.double()), "key", ("torch.float32 as query", "torch.float64", "key.to(query.dtype)")),
    "device": (lambda: search(X, X.to("meta")), "key", ("device cpu", "meta", "key.to(query.device)")),
    "value's tokens": (lambda: aggregate(tokens(count=11)), "value", ("12 tokens as in key", "got 11")),
    "value's batch": (lambda: aggregate(tokens(batch=1)), "value", ("2 samples", "got 1")),
    "value's dtype": (lambda: aggregate(X.half()), "value", ("torch.float32", "torch.float16")),
    "value a map": (lambda: aggregate(torch.zeros(2, 4, 3, 4)), "value", ("3 axes", "(2, 4, 3, 4)")),
    "mask of numbers": (
        lambda: search(key_padding_mask=torch.zeros(2, 12)), "key_padding_mask", ("boolean", ".bool()")),
    "mask a list": (lambda: search(key_padding_mask=[[False] * 12]), "key_padding_mask", ("boolean tensor", "list")),
    "mask without batch": (lambda: search(key_padding_mask=mask(12)), "key_padding_mask", ("(2, 12)", "(12,)")),
    "mask too long": (lambda: search(key_padding_mask=mask(2, 13)), "key_padding_mask", ("(2, 12)", "(2, 13)")),
    "mask elsewhere": (
        lambda: search(key_padding_mask=mask(2, 12).to("meta")), "key_padding_mask", ("device cpu", "meta")),
}  # fmt: skip

NAMES: dict[str, Misuse] = {
    "similarity misspelt": (lambda: search(similarity="cosin"), "similarity", ("'dot'", "did you mean 'cosine'?")),
    "similarity in capitals": (lambda: search(similarity="Euclidean"), "similarity", ("did you mean 'euclidean'?",)),
    "similarity unknown": (lambda: search(similarity="hamming"), "similarity", ("'spatial'", "Blend", "'hamming'")),
    "similarity a function": (lambda: search(similarity=torch.dot), "similarity", ("'cosine'", "dot")),
    "similarity without its lambda": (
        lambda: search(similarity="blend"), "similarity", ("similarity=convnn.Blend(0.5)",)),
    "blend above 1": (lambda: Blend(1.5), "Blend.lam", ("[0, 1]", "got 1.5", "0 is purely spatial")),
    "blend below 0": (lambda: Blend(-0.1), "Blend.lam", ("[0, 1]", "got -0.1")),
    "blend nan": (lambda: Blend(NAN), "Blend.lam", ("[0, 1]", "got nan")),
    "blend a bool": (lambda: Blend(True), "Blend.lam", ("[0, 1]", "got True")),
    "blend a string": (lambda: Blend("0.5"), "Blend.lam", ("[0, 1]", "got '0.5'")),
    "blend of dot": (lambda: Blend(0.5, "dot"), "Blend.feature", ("'cosine', 'sqeuclidean', 'euclidean'", "got 'dot'")),
    "blend's feature misspelt": (lambda: Blend(0.5, "euclidian"), "Blend.feature", ("did you mean 'euclidean'?",)),
    "weighting misspelt": (lambda: aggregate(weighting="sofmax"), "weighting", ("'ones'", "did you mean 'softmax'?")),
    "weighting unknown": (lambda: aggregate(weighting="relu"), "weighting", ("'identity'", "'relu'", "choose one")),
    "impl misspelt": (lambda: search(impl="denze"), "impl", ("'reference'", "did you mean 'dense'?")),
    "impl that cannot convolve": (
        lambda: aggregate(impl="conv"), "impl", ("'conv' cannot: the similarity is not", "'auto'")),
    "impl that cannot attend": (
        lambda: aggregate(weight=None, similarity="dot", impl="sdpa"), "impl", ("not every key", "'auto'")),
    "impl of a whole call for a search": (
        lambda: search(impl="conv"), "impl", ("search and aggregation are one call",)),
    "keyword misspelt": (lambda: aggregate(similarty="dot"), "option", ("'similarty'", "did you mean 'similarity'?")),
    "keyword unknown": (lambda: aggregate(metric="dot"), "option", ("'candidates'", "'metric'")),
    "keyword misspelt, by explain_choice": (
        lambda: explain_choice(X, X, X, k=3, candidate="all"), "option", ("did you mean 'candidates'?",)),
    "scale nan": (lambda: search(similarity="dot", scale=NAN), "scale", ("finite", "nan")),
    "include_self a word": (lambda: search(include_self="no"), "include_self", ("got 'no'",)),
}  # fmt: skip

CANDIDATES: dict[str, Misuse] = {
    "random without a number": (lambda: search(candidates="random"), "candidates", ("candidates=convnn.Random(32)",)),
    "grid without a number": (lambda: search(candidates="grid"), "candidates", ("candidates=convnn.Grid(5)",)),
    "candidates misspelt": (lambda: search(candidates="al"), "candidates", ("Random(r)", "did you mean 'all'?")),
    "candidates a number": (lambda: search(candidates=32), "candidates", ("Random(r)", "got 32")),
    "candidates a list": (lambda: search(candidates=[0, 1, 2]), "candidates", ("1-d tensor", "got [0, 1, 2]")),
    "candidates an array": (lambda: search(candidates=np.arange(4)), "candidates", ("tensor", "array")),
    "candidates of floats": (lambda: search(candidates=torch.ones(2)), "candidates", ("integer tensor", "float32")),
    "candidates of two axes": (lambda: search(candidates=index(0, 1)[None]), "candidates", ("1-d", "(1, 2)")),
    "candidates a mask": (lambda: search(candidates=mask(12)), "candidates", ("positions", "torch.bool")),
    "no candidates": (lambda: search(candidates=index().long()), "candidates", ("non-empty", "(0,)")),
    "candidates outside": (lambda: search(candidates=index(0, 5, 12)), "candidates", ("[0, 12)", "0 to 12")),
    "candidates below": (lambda: search(candidates=index(-1, 5, 6)), "candidates", ("[0, 12)", "-1 to 6")),
    "candidates twice": (
        lambda: search(candidates=index(0, 1, 1, 2)), "candidates", ("distinct", "candidates.unique()")),
    "random of none": (lambda: Random(0), "Random.r", ("at least 1", "got 0")),
    "random of half": (lambda: Random(0.5), "Random.r", ("whole number", "got 0.5")),
    "random from a string": (lambda: Random(3, "7"), "Random.seed", ("an int", "torch.Generator", "got '7'")),
    "random from a bool": (lambda: Random(3, True), "Random.seed", ("an int", "got True")),
    "a seed as a generator": (lambda: Random(3, generator=0), "Random.generator", ("seed=", "got 0")),
    "a seed and a generator": (lambda: Random(5, 1, torch.Generator()), "Random.seed", ("got 1", "only one")),
    "generator of numpy": (
        lambda: Random(5, generator=np.random.default_rng(0)), "Random.generator", ("PCG64", "seed=")),
    "own token not wanted": (
        lambda: search(candidates=Random(5), include_self=False), "include_self", ("slot 0", "got False", "leave it")),
    "grid of none": (lambda: Grid(0), "Grid.g", ("at least 1", "got 0")),
    "grid margin negative": (lambda: Grid(3, -1), "Grid.margin", ("at least 0", "got -1")),
    "grid margin too large": (
        lambda: search(k=2, candidates=Grid(3, 5)), "Grid.margin", ("at most 4", "12 tokens", "got 5", "lower")),
    "window even": (lambda: Window(2), "Window.size", ("odd", "got 2", "add or take 1")),
    "window even along one axis": (lambda: Window((3, 4)), "Window.size", ("odd", "got (3, 4)")),
    "window of none": (lambda: Window(0), "Window.size", ("at least 1", "got 0")),
    "window without axes": (lambda: Window([]), "Window.size", ("one number, or one per axis",)),
    "window dilation zero": (lambda: Window(3, 0), "Window.dilation", ("at least 1", "got 0")),
    "window border misspelt": (lambda: Window(3, border="shfit"), "Window.border", ("'clip'", "did you mean 'shift'?")),
    "window of too many axes": (
        lambda: search(candidates=Window((3, 3, 3)), grid=GRID), "Window.size", ("2 (one per axis)", "got (3, 3, 3)")),
    "dilation of too many axes": (
        lambda: search(candidates=Window(3, (1, 1, 1)), grid=GRID), "Window.dilation", ("one per axis", "(1, 1, 1)")),
    "window shifted beyond the grid": (
        lambda: search(candidates=Window(5, border="shift"), grid=GRID), "Window.size", ("at most 3", "'clip'")),
}  # fmt: skip

POSITIONS: dict[str, Misuse] = {
    "grid of other product": (lambda: search(grid=(3, 5)), "grid", ("product is 12", "(3, 5)", "padding included")),
    "grid a number": (lambda: search(grid=12), "grid", ("one per axis", "got 12", "grid=(height, width)")),
    "grid of floats": (lambda: search(grid=(3.0, 4.0)), "grid", ("whole number", "got 3.0")),
    "grid negative": (lambda: search(grid=(-3, -4)), "grid", ("at least 1", "got -3")),
    "grid empty": (lambda: search(grid=()), "grid", ("one per axis", "got ()")),
    "query_index outside": (lambda: search(query_index=torch.arange(1, 13)), "query_index", ("[0, 12)", "1 to 12")),
    "query_index below": (lambda: search(query_index=torch.arange(-1, 11)), "query_index", ("[0, 12)", "-1 to 10")),
    "query_index of floats": (lambda: search(query_index=torch.arange(12.0)), "query_index", ("integer", "float32")),
    "query_index too short": (lambda: search(query_index=torch.arange(11)), "query_index", ("12 positions", "got 11")),
    "query_index a list": (lambda: search(query_index=list(range(12))), "query_index", ("integer tensor", "[0, 1, 2")),
    "query_index elsewhere": (
        lambda: search(query_index=torch.arange(12, device="meta")), "query_index", ("device cpu", "meta")),
    "query grid too short": (
        lambda: search(query_index=QueryGrid((0,), (11,), (1,))), "query_index", ("12 queries", "(11,)")),
    "query grid outside": (
        lambda: search(query_index=A_SHIFTED_QUERY_GRID), "query_index", ("inside the grid (12,)", "QueryGrid")),
    "query grid of other axes": (
        lambda: search(query_index=QueryGrid((0,), (12,), (1,)), grid=GRID), "query_index", ("2 axes", "offset=(0,)")),
    "query grid of numbers": (lambda: search(query_index=QueryGrid(0, 12, 1)), "query_index", ("per axis",)),
    "cross-attention by position": (
        lambda: search(X[:, :5], similarity="spatial"), "similarity", ("pass query_index",)),
    "cross-attention by blend": (
        lambda: search(X[:, :5], similarity=Blend(0.5)), "similarity", ("Blend", "query_index")),
    "cross-attention in a window": (
        lambda: search(X[:, :5], candidates=Window(3)), "candidates", ("Window", "query_index")),
    "cross-attention to itself": (lambda: search(X[:, :5], include_self=True), "include_self", ("True", "query_index")),
}  # fmt: skip

AGGREGATION: dict[str, Misuse] = {
    "slots": (lambda: aggregate(weight=torch.zeros(4, 4, 4)), "weight", ("k = 3 slots", "got 4")),
    "slots for every key": (lambda: aggregate(k=None), "weight", ("k = 12 slots", "got 3")),
    "weight of a 2-d kernel": (
        lambda: aggregate(weight=torch.zeros(4, 4, 3, 3)), "weight", ("(C_out, C_in/groups, k)", "weight.flatten(2)")),
    "weight a list": (lambda: aggregate(weight=[1.0]), "weight", ("(C_out, C_in/groups, k)", "list")),
    "weight's channels": (lambda: aggregate(weight=torch.zeros(4, 5, 3)), "weight", ("C_in/groups = 4", "got 5")),
    "weight's dtype": (
        lambda: aggregate(weight=torch.zeros(4, 4, 3).double()), "weight", ("float32", "float64", ".to(")),
    "weight elsewhere": (
        lambda: aggregate(weight=torch.zeros(4, 4, 3, device="meta")), "weight", ("device cpu", "meta")),
    "groups that do not divide": (lambda: aggregate(groups=3), "groups", ("divisor", "C_in = 4", "got 3")),
    "groups zero": (lambda: aggregate(groups=0), "groups", ("at least 1", "got 0")),
    "groups a float": (lambda: aggregate(groups=2.0), "groups", ("whole number", "got 2.0")),
    "groups without weight": (lambda: aggregate(weight=None, groups=2), "groups", ("no weight", "got 2")),
    "bias too long": (lambda: aggregate(bias=torch.zeros(5)), "bias", ("(4,)", "(5,)")),
    "bias of two axes": (lambda: aggregate(bias=torch.zeros(1, 4)), "bias", ("(4,)", "(1, 4)")),
    "bias's dtype": (lambda: aggregate(bias=torch.zeros(4).double()), "bias", ("float32", "float64")),
    "bias a list": (lambda: aggregate(bias=[0.0] * 4), "bias", ("(4,)", "list")),
    "temperature zero": (lambda: aggregate(temperature=0), "temperature", ("above 0", "got 0")),
    "temperature negative": (lambda: aggregate(temperature=-1.0), "temperature", ("above 0", "got -1.0")),
    "temperature nan": (lambda: aggregate(temperature=NAN), "temperature", ("finite", "got nan")),
    "temperature a tensor": (lambda: aggregate(temperature=torch.tensor(1.0)), "temperature", ("Tensor of shape ()",)),
    "dropout of all": (lambda: aggregate(dropout_p=1.0), "dropout_p", ("[0, 1)", "got 1.0")),
    "dropout negative": (lambda: aggregate(dropout_p=-0.1), "dropout_p", ("[0, 1)", "got -0.1")),
    "dropout nan": (lambda: aggregate(dropout_p=NAN), "dropout_p", ("finite", "got nan")),
    "neighbours a tuple": (lambda: knn_gather(X, tuple(NEAREST)), "neighbors", ("convnn.Neighbors", "got tuple")),
    "neighbours an index": (lambda: knn_gather(X, NEAREST.index), "neighbors", ("convnn.Neighbors", "got Tensor")),
    "neighbours outside": (lambda: gather(index=NEAREST.index + 12), "neighbors.index", ("[0, 12)",)),
    "neighbours of another batch": (lambda: gather(value=X[:1]), "neighbors", ("batch of 1", "got 2")),
    "neighbours in int32": (lambda: gather(index=NEAREST.index.int()), "neighbors.index", ("int64", "torch.int32")),
    "neighbours unbatched": (
        lambda: gather(NEAREST.similarity[0], NEAREST.index[0]), "neighbors.index", ("(B, N, k)", "(12, 3)")),
    "neighbours of unequal shapes": (
        lambda: gather(similarity=NEAREST.similarity[..., :2]), "neighbors.similarity", ("(2, 12, 3)", "(2, 12, 2)")),
    "neighbours without similarities": (lambda: gather(similarity=None), "neighbors.similarity", ("NoneType",)),
    "neighbours elsewhere": (
        lambda: gather(NEAREST.similarity, NEAREST.index.to("meta")), "neighbors.index", ("cpu", "meta")),
}  # fmt: skip

MISUSES = NEIGHBOUR_COUNT | TENSORS | NAMES | CANDIDATES | POSITIONS | AGGREGATION


@pytest.mark.parametrize("misuse", MISUSES)
def test_the_message_helps(misuse: str) -> None:
    call, argument, fragments = MISUSES[misuse]
    with pytest.raises(ConvNNError) as caught:
        call()
    message = str(caught.value)
    assert re.fullmatch(rf"{re.escape(argument)}: expected .+, got .+; .+", message, re.DOTALL), message
    assert not [fragment for fragment in fragments if fragment not in message], message


def test_the_families_do_not_hide_each_other() -> None:
    families = (NEIGHBOUR_COUNT, TENSORS, NAMES, CANDIDATES, POSITIONS, AGGREGATION)
    assert len(MISUSES) == sum(map(len, families))


def test_the_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="at most 12"):
        search(k=13)


@pytest.mark.parametrize("impl", ["auto", "dense"])
def test_a_sample_without_any_key_is_refused_by_every_implementation(impl: str) -> None:
    everything = torch.ones(2, 12, dtype=torch.bool)
    with pytest.raises(ConvNNError, match="at least one key") as caught:
        aggregate(weight=None, k=None, similarity="dot", weighting="softmax", key_padding_mask=everything, impl=impl)
    assert "beside itself" not in str(caught.value)


@pytest.mark.parametrize("argument", ["similarity", "impl", "weighting"])
def test_no_name_is_suggested_for_what_is_no_name(argument: str) -> None:
    with pytest.raises(ConvNNError, match=f"{argument}: .*got None") as caught:
        aggregate(**{argument: None})
    assert "did you mean" not in str(caught.value)


def test_a_large_tensor_instead_of_a_name_is_not_printed() -> None:
    with pytest.raises(ConvNNError, match="similarity") as caught:
        search(similarity=X)
    assert len(str(caught.value)) < 400
