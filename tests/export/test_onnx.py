"""Exported to ONNX, models run in ONNX Runtime and give the same outputs, for any number of images."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import convnn
from convnn.errors import ConvNNError, MissingExtraError
from convnn.export import export
from convnn.ops.nearest import plain_nearest
from convnn.ops.registry import PLAIN_FORMS

from .conftest import MODELS, exact_logits, steady_images

# Counting lines would double the time that torch takes to trace a model; other tests run the same ones.
traced = pytest.mark.no_cover
NAMES = [name for name in MODELS if not name.startswith("small")]


def run(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def nodes(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def tiny(**options: object) -> nn.Module:
    """One layer on 8 x 8 images, of no configuration that could be saved."""
    torch.manual_seed(5)
    layer = convnn.HybridConvNN2d(3, 8, k=5, **options)
    return nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@traced
@pytest.mark.parametrize("name", NAMES)
def test_the_same_outputs_as_in_double_precision(name, exported) -> None:
    model, path = exported(name, "onnx")
    images = steady_images(model, 5, MODELS[name][2])
    expected = exact_logits(model, images)
    scale = float(expected.abs().max())
    for batch in (1, 2, 5):
        logits = run(path, images[:batch])
        assert float((logits - expected[:batch]).abs().max()) < 1e-4 * min(1.0, scale)
        assert torch.equal(logits.topk(3).indices, expected[:batch].topk(3).indices)


@traced
@pytest.mark.parametrize("name", ["resnet, random", "vit, ConvNN"])
def test_random_candidates_are_those_of_the_evaluation(name, exported) -> None:
    model, path = exported(name, "onnx")
    images = steady_images(model, 2, MODELS[name][2])
    assert torch.equal(run(path, images), run(path, images))
    other = copy.deepcopy(model)
    for part in other.modules():
        if hasattr(part, "eval_seed"):
            part.eval_seed += 100
    with torch.no_grad():
        assert float((run(path, images) - other(images)).abs().max()) > 1e-3, "another draw is another function"


@traced
@pytest.mark.parametrize("name", NAMES)
def test_the_graph_has_operators_of_onnx_alone_and_says_nothing_of_this_machine(name, exported) -> None:
    _, path = exported(name, "onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert len(model.functions) == 0
    assert nodes(path)["TopK"] >= 1
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(convnn.__file__).parent).encode() not in content


class Selections(nn.Module):
    """The neighbours themselves, so that the exported top-k is seen and not only what follows from it."""

    def __init__(self, *searches: dict[str, object]) -> None:
        super().__init__()
        self.searches = searches
        self.conv = nn.Conv2d(6, 1, 1)  # says how many channels the images have

    def forward(self, images: Tensor) -> Tensor:
        tokens, grid = images.flatten(2).transpose(1, 2), tuple(images.shape[2:])
        return torch.stack([convnn.knn_search(tokens, tokens, 5, grid=grid, **s).index for s in self.searches], 1)


@traced
def test_the_neighbours_are_the_same(tmp_path) -> None:
    model = Selections(
        {"similarity": "cosine", "include_self": True},
        {"similarity": "dot"},
        {"similarity": "sqeuclidean", "candidates": convnn.Random(20, seed=3)},
        {"similarity": "euclidean", "candidates": convnn.Grid(3)},
        {"similarity": convnn.Blend(0.5), "candidates": convnn.Window(5)},
        {"similarity": "spatial"},
    )
    export(model, tmp_path / "model.onnx", image_size=8, verify=False)
    torch.manual_seed(4)
    images = torch.randn(3, 6, 8, 8)
    assert torch.equal(run(tmp_path / "model.onnx", images), model(images))


def test_equal_keys_are_taken_lowest_first_in_a_deterministic_run(tmp_path) -> None:
    model = Selections({"similarity": "sqeuclidean", "deterministic": True})
    export(model, tmp_path / "model.onnx", image_size=4, verify=False)
    images = torch.randint(0, 2, (2, 6, 4, 4)).float()  # few values, many equal distances
    assert torch.equal(run(tmp_path / "model.onnx", images), model(images))


def test_a_layer_that_is_a_convolution_stays_one(tmp_path) -> None:
    layer = convnn.ConvNN2d.from_conv(nn.Conv2d(3, 8, 3, padding=1))
    exported = export(nn.Sequential(layer, nn.Flatten()), tmp_path / "model.onnx", image_size=8)
    assert nodes(exported.path) == {"Conv": 1, "Reshape": 1}


@traced
def test_sampled_layers_multiply_before_they_gather(exported) -> None:
    """Slot matrices meet the 24 candidates of an image, not its 256 tokens: what makes sampling cheap is exported."""
    _, path = exported("resnet, random", "onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    shapes = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    products = [node for node in graph.node if node.op_type == "Gemm"]
    first = [node for node in products if shapes.get(node.input[1]) == [8 * 16, 64]]  # 8 slots beside the token's own
    assert [shapes[node.output[0]] for node in first] == [["24*batch", 8 * 16]]


def test_a_fixed_batch_size(tmp_path) -> None:
    exported = export(tiny(), tmp_path / "model.onnx", image_size=8, batch_size=2)
    assert exported.shape == (2, 3, 8, 8)
    assert run(exported.path, torch.zeros(2, 3, 8, 8)).shape == (2, 8)
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        run(exported.path, torch.zeros(3, 3, 8, 8))


@pytest.mark.parametrize("opset", [18, 25])
def test_opsets(opset, tmp_path) -> None:
    exported = export(tiny(), tmp_path / "model.onnx", image_size=8, opset=opset)
    assert exported.opset == opset
    assert {entry.domain: entry.version for entry in onnx.load(exported.path).opset_import} == {"": opset}


def test_an_opset_that_does_not_exist(tmp_path) -> None:
    with pytest.raises(ConvNNError, match=r"^opset: expected one that PyTorch can write .* got 99; leave it out$"):
        export(tiny(), tmp_path / "model.onnx", image_size=8, opset=99)
    assert list(tmp_path.iterdir()) == []


@traced
def test_a_deterministic_process_exports_the_same_graph(tmp_path) -> None:
    """Compared pair by pair, the similarities of one image would be as many numbers as those of C images."""
    torch.use_deterministic_algorithms(True)
    try:
        exported = export(tiny(), tmp_path / "model.onnx", image_size=8)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    plainly = export(tiny(), tmp_path / "plain.onnx", image_size=8, verify=False)
    assert nodes(exported.path) == nodes(plainly.path)


def test_the_file_says_what_it_is(exported) -> None:
    _, path = exported("vit, ConvNN", "onnx")
    model = onnx.load(path)
    notes = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert notes["architecture"]["candidates"] == "random:20"
    assert notes["convnn_version"] == convnn.__version__
    assert (len(notes["mean"]), len(notes["std"])) == (3, 3)
    assert model.producer_name == "convnn"
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("images", "logits")
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert (batch, model.graph.output[0].type.tensor_type.shape.dim[0].dim_param) == ("batch", "batch")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_exported_in_float32(dtype, tmp_path) -> None:
    model = tiny().to(dtype)
    exported = export(model, tmp_path / "model.onnx", image_size=8)
    images = steady_images(model.float(), 2, 8)
    torch.testing.assert_close(run(exported.path, images), model(images), rtol=1e-4, atol=1e-5)


def test_the_model_stays_as_it_is(tmp_path) -> None:
    model = tiny(impl="reference", candidates=convnn.Random(9)).train()
    before = copy.deepcopy(model)
    export(model, tmp_path / "model.onnx", image_size=8)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert str(model) == str(before)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_wrong_export_is_refused_and_leaves_the_file_that_was_there(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"the last one")

    def farthest(query, key, *others):
        return plain_nearest(-query, key, *others)

    monkeypatch.setitem(PLAIN_FORMS, torch.ops.convnn.nearest.default, farthest)
    with pytest.raises(ConvNNError, match=r"model: expected exported logits within 0.0001 of the model's, got a diff"):
        export(tiny(), path, image_size=8)
    assert path.read_bytes() == b"the last one"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_quiet_and_says_what_it_does_when_asked(tmp_path, capfd, caplog) -> None:
    said: list[str] = []
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    export(tiny(candidates=convnn.Random(9)), tmp_path / "model.onnx", image_size=8, log=said.append)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
    assert levels == {name: logging.getLogger(name).level for name in levels}
    assert [line.split()[0] for line in said] == ["Tracing", "Writing", "Running"]


def test_a_missing_package_is_named_before_anything_happens(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'onnxruntime is not installed.*pip install "\.\[export\]"'):
        export(tiny(), tmp_path / "folder" / "model.onnx", image_size=8)
    assert list(tmp_path.iterdir()) == []


class Spread(nn.Module):
    """Computes what ONNX has no operator for."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.linalg.svdvals(images.flatten(2))


def test_an_operator_that_onnx_has_not_is_named(tmp_path) -> None:
    with pytest.raises(ConvNNError, match=r"model: expected one whose operators ONNX has, got .*linalg_svd") as refused:
        export(Spread(), tmp_path / "model.onnx", image_size=8)
    assert "format='torch-export'" in str(refused.value)
    assert "\n" not in str(refused.value)
