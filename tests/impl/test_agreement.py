"""Every implementation computes what the reference computes: neighbours, outputs and gradients."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import convnn
from convnn.impl.choose import IMPLEMENTATIONS
from convnn.testing import assert_close, covering_set, function_with_gradients, separated_tokens

from .. import layers
from ..layers import CANDIDATES, SIMILARITIES, WEIGHTINGS

OTHERS = [impl for impl in layers.IMPLEMENTATIONS if impl != "reference"]
GRID = (3, 4)
KEYS = 12
CHANNELS = 4
K = 3
MASK = torch.zeros(2, KEYS, dtype=torch.bool).index_put(
    (torch.tensor([0, 1]), torch.tensor([5, 2])), torch.tensor(True)
)

# Who asks: the keys themselves, as many other vectors, strangers, or some of the keys' positions.
QUERIES: dict[str, Any] = {
    "keys": "same",
    "projected": "same",
    "strangers": None,
    "query grid": convnn.QueryGrid((0, 1), (2, 2), (2, 2)),
    "some": torch.tensor([7, 0, 7, 10, 11]),
}
COUNTS = {"keys": KEYS, "projected": KEYS, "strangers": 5, "query grid": 4, "some": 5}
SCALINGS: dict[str, dict[str, Any]] = {
    **{name: {"weighting": name} for name in WEIGHTINGS},
    "sharp softmax": {"weighting": "softmax", "temperature": 0.5},
}
WEIGHTS: dict[str, Any] = {
    "sum": None,
    "standard": (6, CHANNELS, 1),
    "groups": (6, CHANNELS // 2, 2),
    "depthwise": (CHANNELS, 1, CHANNELS),
    "depthwise multiplier": (2 * CHANNELS, 1, CHANNELS),
}


def exists(case: dict[str, Any]) -> bool:
    """Whether the operator has this case: strangers have no positions."""
    needs_position = (
        case["include_self"] or "window" in case["candidates"] or case["similarity"].split()[0] in ("spatial", "blend")
    )
    return not (case["queries"] == "strangers" and needs_position)


def search_options(case: dict[str, Any]) -> dict[str, Any]:
    return {
        "similarity": SIMILARITIES[case["similarity"]],
        "candidates": CANDIDATES[case["candidates"]],
        "include_self": case["include_self"] or None,
        "query_index": QUERIES[case["queries"]],
        "grid": GRID,
        "key_padding_mask": MASK if case["masked"] else None,
    }


@functools.cache
def query_and_key(queries: str, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """Queries (None: the keys themselves) and keys without ties."""
    if queries == "keys":
        return None, separated_tokens(2, KEYS, CHANNELS, dtype=dtype)
    query = torch.randn(2, COUNTS[queries], CHANNELS, generator=torch.Generator().manual_seed(1)).to(dtype)
    return query, separated_tokens(2, KEYS, CHANNELS, queries=query, dtype=dtype)


def search(case: dict[str, Any], impl: str, dtype: torch.dtype, *, oracle: bool = False) -> convnn.Neighbors:
    """The neighbours of a case; as ``oracle`` in float64, of the same values."""
    query, key = query_and_key(case["queries"], dtype)
    if oracle:
        query, key = None if query is None else query.double(), key.double()
    return convnn.knn_search(key if query is None else query, key, K, impl=impl, **search_options(case))


def searchers(case: dict[str, Any], dtype: torch.dtype) -> list[str]:
    """The implementations that can search a case; the native one takes what it has a kernel for."""
    query, key = query_and_key(case["queries"], dtype)
    given = {"query": query, "key": key, "value": None}
    return [*OTHERS, *({"native"} & set(implementations(given, {**search_options(case), "k": K})))]


def compare_neighbors(case: dict[str, Any], dtype: torch.dtype) -> None:
    expected = search(case, "reference", dtype, oracle=True)
    for impl in searchers(case, dtype):
        actual = search(case, impl, dtype)
        assert actual.similarity.dtype == (dtype if dtype in (torch.float32, torch.float64) else torch.float32)
        assert torch.equal(actual.index, expected.index), (impl, case)
        assert_close({"similarity": actual.similarity}, {"similarity": expected.similarity}, case=(impl, case))


@pytest.mark.parametrize("candidates", CANDIDATES)
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_search(similarity, candidates):
    for include_self, masked, queries in itertools.product((False, True), (False, True), QUERIES):
        case = {
            "similarity": similarity, "candidates": candidates, "include_self": include_self, "masked": masked,
            "queries": queries,
        }  # fmt: skip
        if exists(case):
            compare_neighbors(case, torch.float64)
            compare_neighbors(case, torch.float32)


def tensors(case: dict[str, Any]) -> dict[str, Tensor | None]:
    """What a case aggregates, by the names of ``knn_aggregate``."""
    dtype, generator = case["dtype"], torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    query, key = query_and_key(case["queries"], dtype)
    shape = WEIGHTS[case["weight"]]
    weight = None if shape is None else draw(*shape[:2], K)
    out = CHANNELS if shape is None else shape[0]
    bias = draw(out) if case["bias"] else None
    return {"query": query, "key": key, "value": draw(2, KEYS, CHANNELS), "weight": weight, "bias": bias}


def aggregate_options(case: dict[str, Any]) -> dict[str, Any]:
    shape = WEIGHTS[case["weight"]]
    options = {"k": K, "groups": 1 if shape is None else shape[2], "deterministic": case["deterministic"]}
    return {**options, **SCALINGS[case["weighting"]], **search_options(case)}


def results(given: dict[str, Tensor | None], options: dict[str, Any]) -> dict[str, Tensor]:
    """Output and all gradients; the queries are the keys where there are none."""

    def aggregate(query: Tensor | None, key: Tensor, **others: Any) -> Tensor:
        return convnn.knn_aggregate(key if query is None else query, key, **others, **options)

    return function_with_gradients(aggregate, **given)


def implementations(given: dict[str, Tensor | None], options: dict[str, Any]) -> list[str]:
    """Those that can run a problem, ``auto`` included."""
    able = []
    query = given["key"] if given["query"] is None else given["query"]
    others = [given.get(name) for name in ("key", "value", "weight", "bias")]
    others[1] = given["key"] if others[1] is None else others[1]
    for impl in ("auto", *(each.name for each in IMPLEMENTATIONS)):
        try:
            convnn.explain_choice(query, *others, impl=impl, **options)
        except convnn.ConvNNError:
            continue
        able.append(impl)
    return able


def compare(given: dict[str, Tensor | None], options: dict[str, Any]) -> list[str]:
    """Compare all implementations with the reference in float64 on the same values; say which could run."""
    exact = {name: None if tensor is None else tensor.double() for name, tensor in given.items()}
    expected = results(exact, {**options, "impl": "reference"})
    able = implementations(given, options)
    for impl in able:
        actual = results(given, {**options, "impl": impl})
        assert actual["output"].dtype == given["value"].dtype
        assert_close(actual, expected, case=(impl, options))
    return able


OPTIONS = {
    "similarity": tuple(SIMILARITIES),
    "candidates": tuple(CANDIDATES),
    "queries": tuple(QUERIES),
    "include_self": (False, True),
    "masked": (False, True),
    "weighting": tuple(SCALINGS),
    "weight": tuple(WEIGHTS),
    "bias": (False, True),
    "deterministic": (False, True),
    "dtype": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
}
CASES = covering_set(OPTIONS, allowed=exists)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_outputs_and_gradients(case):
    compare_neighbors(case, case["dtype"])
    assert {"auto", *layers.IMPLEMENTATIONS} <= set(compare(tensors(case), aggregate_options(case)))


@pytest.mark.parametrize("dtype", OPTIONS["dtype"])
@pytest.mark.parametrize("weighting", SCALINGS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_aggregation(weight, weighting, dtype):
    """Gathering alone, of neighbours that are given: with every weight, weighting and precision."""
    case = {"queries": "keys", "weight": weight, "bias": True, "dtype": dtype}
    given = {name: tensor for name, tensor in tensors(case).items() if name in ("value", "weight", "bias")}
    generator = torch.Generator().manual_seed(3)
    given["similarity"] = torch.rand(2, 5, K, generator=generator).to(dtype)
    index = torch.randint(KEYS, (2, 5, K), generator=generator)
    groups = 1 if WEIGHTS[weight] is None else WEIGHTS[weight][2]

    def gather(impl: str, similarity: Tensor, value: Tensor, **others: Any) -> Tensor:
        found = convnn.Neighbors(similarity, index)
        return convnn.knn_gather(value, found, groups=groups, impl=impl, **SCALINGS[weighting], **others)

    exact = {name: None if tensor is None else tensor.double() for name, tensor in given.items()}
    expected = function_with_gradients(functools.partial(gather, "reference"), **exact)
    for impl in ("auto", *layers.IMPLEMENTATIONS):
        assert_close(function_with_gradients(functools.partial(gather, impl), **given), expected, case=impl)


LIMIT_CASES = {
    "conv": {
        "similarity": "spatial", "k": 9, "candidates": convnn.Window(3), "grid": (6, 5), "weighting": "ones",
        "query_index": convnn.QueryGrid((2, 1), (2, 3), (2, 1)),
    },
    "sdpa": {"similarity": "dot", "k": 30, "candidates": "all", "weighting": "softmax", "temperature": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("dtype", OPTIONS["dtype"])
@pytest.mark.parametrize("impl", LIMIT_CASES)
def test_the_native_kernels(impl, dtype):
    options = LIMIT_CASES[impl]
    given = {
        "query": torch.randn(2, 6, CHANNELS).to(dtype),
        "key": torch.randn(2, 30, CHANNELS).to(dtype),
        "value": torch.randn(2, 30, CHANNELS).to(dtype),
        "weight": torch.randn(6, CHANNELS, 9).to(dtype) if impl == "conv" else None,
        "bias": torch.randn(6 if impl == "conv" else CHANNELS).to(dtype),
    }
    assert impl in compare(given, options)
