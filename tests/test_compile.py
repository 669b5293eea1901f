"""torch.compile without graph breaks or a recompilation per size, torch.export, vmap, autocast, meta and DDP."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import convnn
from convnn.testing import assert_close, with_gradients

from .layers import LAYERS, TOKENS, example, make

# Counting lines would double the time that torch takes to trace; other tests run the same ones.
pytestmark = pytest.mark.no_cover

# Tracing takes time: one layer of every kind of graph.
TRACED = (
    "all", "random", "grid", "window", "euclidean", "blend", "convolution", "spatial", "patches", "hybrid", *TOKENS,
)  # fmt: skip
# Their queries and keys are products, which autocast rounds: they may have other neighbours.
PROJECTED = ("sum", "one axis")
DIFFERENTIATED = ("all", "random", "spatial", "hybrid", "ConvNN attention")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_and_not(compiled: Any, layer: nn.Module, x: Tensor) -> list[dict[str, Tensor]]:
    """Outputs and gradients of a layer compiled and as it is."""
    inputs = {"input": x.requires_grad_(), **dict(layer.named_parameters())}
    return [with_gradients(run(x), inputs) for run in (compiled, layer)]


@pytest.mark.parametrize(("name", "training"), [*((name, False) for name in TRACED), ("random", True)])
def test_compiles_into_one_graph_for_all_sizes_that_computes_the_same(name: str, training: bool) -> None:
    layer = make(name).double().train(training)
    backend = "aot_eager" if name in DIFFERENTIATED and not training else "eager"
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for size in (8, 10, 14):
        x = example(name, size, dtype=torch.float64)
        if training:
            compiled(x)  # its candidates are drawn at every call
        else:
            assert_close(*compiled_and_not(compiled, layer, x))
    assert counter.frame_count <= 2, "one graph for the first size and one for every other"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last"),
    [("hybrid", False), ("hybrid", True), ("random", False), ("random", True), ("k-NN attention", False)],
)
def test_the_default_compiler_computes_the_same(name: str, last: bool) -> None:
    layer = make(name).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for size in (8, 10):
        x = example(name, size).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        ours, theirs = compiled_and_not(compiled, layer, x)
        torch.testing.assert_close(ours.pop("output"), theirs.pop("output"), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TRACED)
def test_exports_with_a_dynamic_batch(name: str, tmp_path: Path) -> None:
    layer = make(name).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(layer, (example(name),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    x = example(name, batch=5)
    torch.testing.assert_close(loaded(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_is_the_loop(name: str) -> None:
    layer = make(name).double().eval()
    x = example(name, batch=6, dtype=torch.float64).unflatten(0, (3, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        mapped = torch.func.vmap(layer)(x)
    assert_close({"y": mapped}, {"y": torch.stack([layer(part) for part in x])})


def test_vmap_over_a_mask_says_what_it_cannot_do() -> None:
    tokens = torch.randn(3, 2, 6, 4)
    masks = torch.zeros(3, 2, 6, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda x, m: convnn.knn_search(x, x, 2, key_padding_mask=m).index)(tokens, masks)


@pytest.mark.parametrize("name", LAYERS)
def test_runs_on_the_meta_device(name: str) -> None:
    layer, x = make(name), example(name)
    assert copy.deepcopy(layer).to("meta")(x.to("meta")).shape == layer(x).shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_autocast_runs_products_in_half_and_the_search_in_float32(name: str, dtype: torch.dtype) -> None:
    layer, x = make(name).eval(), example(name)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    if name not in PROJECTED:
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_autocast_does_not_change_the_neighbours() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 200, 16) + 50  # bfloat16 products could not tell these apart
    expected = convnn.knn_search(tokens, tokens, 5, similarity="sqeuclidean")
    with torch.autocast("cpu", torch.bfloat16):
        found = convnn.knn_search(tokens, tokens, 5, similarity="sqeuclidean")
    assert torch.equal(found.index, expected.index)
    assert found.similarity.dtype == torch.float32


def test_trains_under_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        layer = make("hybrid")
        parallel = nn.parallel.DistributedDataParallel(layer)
        parallel(example("hybrid")).square().mean().backward()
        assert all(p.grad is not None for p in layer.parameters())
    finally:
        torch.distributed.destroy_process_group()
