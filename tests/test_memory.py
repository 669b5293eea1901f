"""Memory: no layer holds scores of all pairs of tokens, or copies of a batch's values for every neighbour."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from convnn import ConvNN2d, ConvNNAttention, Grid, HybridConvNN2d, Random, Window, native
from convnn.ops.tiles import TILE_NUMBERS
from convnn.testing import layer_with_gradients

from .layers import KINDS, LAYERS, MAPS, VOLUMES, answer, example, make
from .operators import LargestTensor

BOUND = 24 << 20  # bytes: some tiles, whatever the number of tokens


def largest(call: Callable[[], object]) -> int:
    with LargestTensor() as seen:
        call()
    return seen.size


@pytest.mark.parametrize("name", LAYERS)
def test_no_scores_of_all_pairs(name: str) -> None:
    x = example(name, 64 if name in MAPS | VOLUMES else 4093, batch=1)
    tokens = x[0].numel() // (4 if x.dim() > 3 or name == "one axis" else 8)
    assert 4 * tokens**2 > 2 * BOUND
    layer = make(name)
    assert largest(lambda: layer_with_gradients(layer, x)) <= BOUND


def test_multihead_attention_has_them_in_the_weights_that_are_asked_for_alone() -> None:
    layer, x = KINDS["multihead"](), example("multihead", 4093, batch=1)
    assert largest(lambda: answer(layer, x, need_weights=False)) <= BOUND
    assert largest(lambda: answer(layer, x)) >= 4 * 4096**2


def test_the_dense_implementation_has_them() -> None:
    """The measure sees what there is to see."""
    layer, x = ConvNN2d(4, 6, 5, impl="dense"), example("all", 64, batch=1)
    assert largest(lambda: layer(x)) >= 4 * (64 * 66) ** 2


CANDIDATES: dict[str, Any] = {
    "all": "all",
    "random": Random(32),
    "grid": Grid(5),
    "window": Window(5, border="shift"),
    "positions": torch.arange(0, 384, 12),
}
AGGREGATIONS: dict[str, dict[str, Any]] = {
    "standard": {},
    "weighted": {"weighting": "softmax", "similarity": "euclidean"},
    "depthwise": {"aggregation": "depthwise"},
    "sum": {"aggregation": "sum", "weighting": "softmax"},
}
K = 24
# One sample's copies may be held, those of the batch not.
WIDE = torch.randn(24, 64, 16, 24, generator=torch.Generator().manual_seed(0))
assert max(WIDE[0].nbytes * K, 8 * TILE_NUMBERS) < BOUND < WIDE.nbytes * K / 1.5


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("candidates", CANDIDATES)
def test_no_copy_of_the_values_for_every_neighbour(candidates: str, aggregation: str) -> None:
    layer = ConvNN2d(64, 64, K, candidates=CANDIDATES[candidates], **AGGREGATIONS[aggregation])
    assert largest(lambda: layer_with_gradients(layer, WIDE)) <= BOUND


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_nor_without_the_native_library(aggregation: str) -> None:
    layer = ConvNN2d(64, 64, K, **AGGREGATIONS[aggregation])
    with native.at_level("off"):
        assert largest(lambda: layer_with_gradients(layer, WIDE)) <= BOUND


@pytest.mark.parametrize(
    "layer",
    [
        HybridConvNN2d(64, 128, k=K),
        ConvNNAttention(64, 2, k=K, aggregation="standard"),
        ConvNNAttention(64, 2, k=K, candidates=Random(32)),
    ],
    ids=["hybrid", "attention", "attention among few"],
)
def test_nor_in_hybrids_and_heads(layer: nn.Module) -> None:
    x = WIDE if isinstance(layer, HybridConvNN2d) else WIDE.flatten(2).mT
    assert largest(lambda: layer_with_gradients(layer, x)) <= BOUND


@pytest.mark.parametrize(
    "layer",
    [
        ConvNN2d(6, 10, 5, candidates=Random(12), candidate_padding=20),
        ConvNN2d(6, 10, 5, candidates=Grid(4), candidate_padding=20, stride=2),
        HybridConvNN2d(6, 10, k=5, candidates=Random(12), candidate_padding=20),
    ],
    ids=["random", "grid", "hybrid"],
)
def test_padding_is_counted_and_never_written_where_candidates_are_few(layer: nn.Module) -> None:
    x = torch.randn(2, 6, 8, 9)
    assert largest(lambda: layer_with_gradients(layer, x)) < 4 * 2 * 6 * 48 * 49


RISE = """
import resource, torch
from convnn import ConvNN2d
layer, x = ConvNN2d(4, 4, 9), torch.randn(1, 4, 80, 80, requires_grad=True)
layer(torch.randn(1, 4, 8, 8)).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer(x).sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the peak of resident memory in KiB")
@pytest.mark.parametrize("level", ["off", "auto"])
def test_tiles_use_the_memory_of_those_before(level: str) -> None:
    """The scores of all pairs, 160 MiB, are not resident at the same time."""
    environment = {**os.environ, "CONVNN_NATIVE": level, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RISE], env=environment, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64 << 10
