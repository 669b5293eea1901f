"""Layers by the native library at every level: the limit cases, several threads at once, several processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import convnn
from convnn import ConvNN2d, ConvNNAttention, Random, native
from convnn.testing import assert_close, layer_with_gradients

from ..layers import LAYERS, example, make
from .data import LEVELS

pytestmark = pytest.mark.skipif(not LEVELS, reason=f"needs the native library: {native.why_not()}")


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.at_level(request.param):
        yield request.param


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_gradients(name: str) -> None:
    layer, x = make(name).eval(), example(name, batch=2)
    expected = layer_with_gradients(layer.double(), x.double())
    assert_close(layer_with_gradients(layer.float(), x), expected)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("groups", [1, 3, 6])
def test_a_convolution_is_the_aggregation_of_a_window(groups: int) -> None:
    torch.manual_seed(0)
    x, conv = torch.randn(2, 6, 7, 9), nn.Conv2d(6, 12, 3, groups=groups)
    tokens, grid = x.flatten(2).transpose(1, 2), convnn.QueryGrid((1, 1), (5, 7), (1, 1))
    options = {"similarity": "spatial", "candidates": convnn.Window(3), "grid": (7, 9), "query_index": grid}
    found = convnn.knn_search(tokens[:, :35], tokens, 9, **options)  # type: ignore[arg-type]
    out = convnn.knn_gather(tokens, found, conv.weight.flatten(2), conv.bias, groups=groups, impl="native")
    torch.testing.assert_close(out, conv(x).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("level")
def test_attention_is_the_sum_over_all_keys() -> None:
    query, key, value = torch.randn(3, 4, 30, 8)
    options = {"similarity": "dot", "weighting": "softmax", "scale": 8**-0.5}
    out = convnn.knn_aggregate(query, key, value, k=30, impl="native", **options)  # type: ignore[arg-type]
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value), rtol=1e-5, atol=1e-5)


def some_layers() -> list[tuple[nn.Module, torch.Tensor]]:
    maps, tokens = torch.randn(2, 8, 20, 20), torch.randn(2, 150, 16)
    layers = (
        ConvNN2d(8, 8, 9),
        ConvNN2d(8, 8, 9, candidates=Random(20, seed=0)),
        ConvNN2d(8, 8, 5, similarity="euclidean"),
    )
    return [*((layer.eval(), maps) for layer in layers), (ConvNNAttention(16, 2, k=5).eval(), tokens)]


def test_inference_from_eight_threads_at_once() -> None:
    torch.manual_seed(0)
    layers = some_layers()

    def run(number: int) -> torch.Tensor:
        layer, x = layers[number % len(layers)]
        with torch.no_grad():
            out: torch.Tensor = layer(x)
        return out

    expected = [run(number) for number in range(len(layers))]
    with ThreadPoolExecutor(8) as pool:
        for number, out in enumerate(pool.map(run, range(200))):
            assert torch.equal(out, expected[number % len(layers)])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def gradients_of_a_rank(rank: int, port: int, path: str) -> None:
    """Save the gradients that two processes agree on; each has half of the batch."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    layers = some_layers()
    for number, (layer, x) in enumerate(layers):
        layer.load_state_dict(torch.load(os.path.join(path, f"state{number}.pt"), weights_only=True))
        parallel = DistributedDataParallel(layer)
        parallel(x[rank : rank + 1]).square().sum().backward()
        if rank == 0:
            torch.save({name: p.grad for name, p in layer.named_parameters()}, os.path.join(path, f"{number}.pt"))
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_mean_of_the_gradients(tmp_path) -> None:
    torch.manual_seed(0)
    layers = some_layers()
    for number, (layer, _) in enumerate(layers):  # with the seed of the evaluation's random candidates
        torch.save(layer.state_dict(), tmp_path / f"state{number}.pt")
    torch.multiprocessing.spawn(gradients_of_a_rank, (free_port(), str(tmp_path)), nprocs=2)
    for number, (layer, x) in enumerate(layers):
        (layer(x).square().sum() / 2).backward()
        saved = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert_close(saved, {name: p.grad for name, p in layer.named_parameters()}, limit=1e-5, case=number)
