"""torch.compile without graph breaks or a recompilation per size, torch.export, vmap, autocast, meta and DDP."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import convnn
from convnn import Blend, ConvNN2d, ConvNNAttention, Grid, HybridAttention, HybridConvNN2d, Random, Window

# Counting lines would double the time that torch takes to trace; other tests run the same ones.
pytestmark = pytest.mark.no_cover

MAPS = {
    "all": lambda: ConvNN2d(4, 6, candidate_padding=1),
    "random": lambda: ConvNN2d(4, 6, candidate_padding=1, candidates=Random(12)),
    "grid": lambda: ConvNN2d(4, 6, candidates=Grid(4), stride=2),
    "window": lambda: ConvNN2d(4, 6, candidate_padding=2, candidates=Window(5)),
    "spatial": lambda: ConvNN2d(4, 6, candidate_padding=1, similarity="spatial"),
    "spatial to the border": lambda: ConvNN2d(4, 6, similarity="spatial"),
    "blend": lambda: ConvNN2d(4, 6, candidate_padding=1, similarity=Blend(0.5), value_coordinates=True),
    "softmax": lambda: ConvNN2d(4, 6, similarity="euclidean", weighting="softmax"),
    "hybrid": lambda: HybridConvNN2d(4, 6),
    "patches": lambda: ConvNN2d(4, 6, unshuffle=2, shuffle=2),
}
TOKENS = {
    "k-NN attention": lambda: ConvNNAttention(8, 2, k=4, aggregation="sum"),
    "attention": lambda: ConvNNAttention(8, 2, k=None, aggregation="sum"),
    "ConvNN attention": lambda: ConvNNAttention(8, 2, k=4),
    "hybrid attention": lambda: HybridAttention(8, 2, k=4),
}
LAYERS = MAPS | TOKENS


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[name]()


def example(name: str, size: int = 8, batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 4, size, size + 2) if name in MAPS else torch.randn(batch, size + 3, 8)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "training"), [*((name, True) for name in LAYERS), ("random", False)])
def test_compiles_into_one_graph_for_all_sizes(name: str, training: bool) -> None:
    layer = make(name).train(training)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for size in range(8, 20, 2):
        compiled(example(name, size))
    assert counter.frame_count <= 2, "one graph for the first size and one for every other"


@pytest.mark.parametrize("name", ["all", "random", "spatial to the border", "hybrid", "ConvNN attention"])
def test_compiled_with_symbolic_sizes_it_computes_the_same(name: str) -> None:
    layer = make(name).double().eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (8, 10, 14):
        x = example(name, size).double().requires_grad_()
        y = compiled(x)
        gradient = torch.autograd.grad(y.square().sum(), x)[0]
        torch.testing.assert_close(y, layer(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, torch.autograd.grad(layer(x).square().sum(), x)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "last"),
    [("hybrid", False), ("hybrid", True), ("random", False), ("random", True), ("k-NN attention", False)],
)
def test_the_default_compiler_computes_the_same(name: str, last: bool) -> None:
    layer = make(name).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for size in (8, 10):
        memory_format = torch.channels_last if last else torch.contiguous_format
        inputs = [example(name, size).contiguous(memory_format=memory_format).requires_grad_(), *layer.parameters()]
        y, expected = compiled(inputs[0]), layer(inputs[0])
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        ours, theirs = (torch.autograd.grad(out.square().sum(), inputs) for out in (y, expected))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
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
    x = example(name, batch=6).double().unflatten(0, (3, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        mapped = torch.func.vmap(layer)(x)
    torch.testing.assert_close(mapped, torch.stack([layer(part) for part in x]), rtol=1e-12, atol=1e-12)


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
