"""Tracers: a call is one node of every torch.fx graph; TorchScript, nested and sparse tensors are refused in words."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_fx
from torch.fx.experimental.optimization import fuse
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import convnn
from convnn import ConvNNError, Neighbors

from .layers import example, make


class Maps(nn.Module):
    """Layers on maps, neighbours found once and given by position and by name."""

    def __init__(self):
        super().__init__()
        self.first = convnn.ConvNN2d(4, 4, k=3, candidate_padding=1)
        self.second = convnn.HybridConvNN2d(4, 4, 3, k=3, candidates=convnn.Random(5))

    def forward(self, x):
        x = x + self.first(x, neighbors=self.first.neighbors(x))
        return self.second(x, self.second.neighbors(x))


class Tokens(nn.Module):
    """Every attention layer, its arguments by position and by name, and several results."""

    def __init__(self):
        super().__init__()
        self.heads = convnn.ConvNNMultiheadAttention(8, 2, k=3, batch_first=True)
        self.attention = convnn.ConvNNAttention(8, 2, k=3, candidates=torch.tensor([1, 4, 5]))
        self.hybrid = convnn.HybridAttention(8, 2, k=3)

    def forward(self, x):
        attended, weights = self.heads(query=x, key=x, value=x)
        return self.hybrid(self.attention(attended) + weights @ x, key_padding_mask=None)


class Functions(nn.Module):
    """The functional API, with what the search returned as it is, taken apart, and put together."""

    def forward(self, x):
        near = convnn.knn_search(x, x, k=3, similarity=convnn.Blend(0.5), grid=(3, 3))
        similarity, index = near
        y = convnn.knn_gather(x, near) * convnn.knn_gather(x, Neighbors(similarity, index), weighting="softmax")
        return y + convnn.knn_aggregate(x, x, x, k=2, candidates=convnn.Grid(2), grid=(3, 3))


MODELS = [
    (Maps, (2, 4, 6, 6), {"first", "second", "neighbors"}),
    (Tokens, (2, 9, 8), {"heads", "attention", "hybrid"}),
    (Functions, (2, 9, 8), {"knn_search", "knn_gather", "knn_aggregate"}),
]


def made(kind, shape):
    return kind().eval(), torch.randn(shape)


# ------------------------------------------------------------------------------ torch.fx
@pytest.mark.parametrize(("kind", "shape", "nodes"), MODELS)
def test_every_call_is_one_node(kind, shape, nodes):
    model, x = made(kind, shape)
    graph = torch.fx.symbolic_trace(model)
    named = {node.target if isinstance(node.target, str) else node.target.__name__ for node in graph.graph.nodes}
    # What is left are the model's own operations and the records that it makes.
    assert named - nodes <= {"x", "add", "mul", "matmul", "getitem", "output", "Blend", "Grid", "Neighbors"}
    assert nodes <= named
    again = (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph)), torch.fx.Transformer(graph).transform())
    for traced in again:
        assert torch.equal(traced.eval()(x), model(x))
    assert torch.equal(torch.fx.Interpreter(graph).run(x), model(x))


def test_a_graph_trains_as_the_model_does():
    model, x = made(Tokens, (2, 9, 8))
    graph = copy.deepcopy(torch.fx.symbolic_trace(model)).train()
    model.train()
    for part in (model, graph):
        part(x).square().sum().backward()
    theirs = dict(graph.named_parameters())
    assert theirs
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, theirs[name].grad), name


@pytest.mark.parametrize("to", ["convnn", "hybrid"])
def test_torchvision_s_feature_extractor(to):
    model = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    model = convnn.convert(model, to, k=3).eval()
    x = torch.randn(2, 3, 32, 32)
    _, names = get_graph_node_names(model)
    assert "layer1.0.conv1" in names
    assert not [name for name in names if name.startswith("layer1.0.conv1.")]
    features = create_feature_extractor(model, {"layer2": "map", names[-1]: "logits"})(x)
    assert torch.equal(features["logits"], model(x))
    assert features["map"].shape == (2, 128, 4, 4)
    torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-4, atol=1e-4)  # batch norms folded, as torch.fx does


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated", "ignore:Please use quant_min")
def test_a_quantisation_passes_by_the_layers():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), convnn.HybridConvNN2d(4, 4, 3, k=3)).eval()
    x = torch.randn(2, 4, 6, 6)
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (x,))
    torch.testing.assert_close(prepared(x), model(x))  # so far the activations are only observed
    assert isinstance(prepared.get_submodule("2"), convnn.HybridConvNN2d)


def test_a_layer_alone_is_no_graph():
    with pytest.raises(ConvNNError, match=r"^root: .*, got the ConvNN2d itself; trace nn.Sequential\(layer\)"):
        torch.fx.symbolic_trace(convnn.ConvNN2d(4, 4, k=3))


# ------------------------------------------------------------------------------ tensors without numbers
@pytest.mark.parametrize("name", ["all", "window", "positions", "spatial", "k-NN attention"])
def test_layers_run_on_fake_tensors_and_are_recorded(name):
    layer, x = make(name).eval(), example(name)
    expected = layer(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert layer(mode.from_tensor(x)).shape == expected.shape
    for tracing in ("real", "fake"):
        recorded = make_fx(layer, tracing_mode=tracing, _allow_non_fake_inputs=True)(x)
        torch.testing.assert_close(recorded(x), expected)


# ------------------------------------------------------------------------------ TorchScript
TORCHSCRIPT = (
    r"^model: expected no TorchScript \(.*\), got \w+; use torch.compile, torch.export.export, or convnn.export"
)
ROUTES = {
    "trace": lambda model, x: torch.jit.trace(model, x),
    "script": lambda model, x: torch.jit.script(model),
    "onnx": lambda model, x: torch.onnx.export(model, (x,), io.BytesIO(), dynamo=False),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("kind", "shape", "nodes"), MODELS)
def test_torchscript_says_what_to_use(kind, shape, nodes, route):
    model, x = made(kind, shape)
    with pytest.raises(ConvNNError, match=TORCHSCRIPT):
        ROUTES[route](model, x)


def neighbours(x):
    return convnn.knn_search(x, x, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*deprecated")
@pytest.mark.parametrize("call", [convnn.knn_search, neighbours])
def test_functions_are_no_torchscript(call):
    with pytest.raises(ConvNNError, match=TORCHSCRIPT):
        torch.jit.script(call)


@pytest.mark.parametrize(("kind", "shape", "nodes"), MODELS)
def test_what_it_says_works(kind, shape, nodes):
    model, x = made(kind, shape)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


# ------------------------------------------------------------------------------ tensors of another layout
def nested(layout):
    return torch.nested.nested_tensor([torch.randn(5, 8), torch.randn(7, 8)], layout=layout)


TAKES = {
    "ConvNN1d": lambda x: convnn.ConvNN1d(8, 8, k=3)(x),
    "neighbors": lambda x: convnn.ConvNN1d(8, 8, k=3).neighbors(x),
    "HybridConvNN1d": lambda x: convnn.HybridConvNN1d(8, 8, 3, k=3)(x),
    "ConvNNAttention": lambda x: convnn.ConvNNAttention(8, 2, k=None, aggregation="sum")(x),
    "ConvNNMultiheadAttention": lambda x: convnn.ConvNNMultiheadAttention(8, 2, k=3)(x, x, x),
    "HybridAttention": lambda x: convnn.HybridAttention(8, 2, k=3)(x),
    "knn_search": lambda x: convnn.knn_search(x, x, 3),
    "knn_aggregate": lambda x: convnn.knn_aggregate(x, x, x, k=3),
    "knn_gather": lambda x: convnn.knn_gather(x, Neighbors(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3).long())),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.parametrize("call", TAKES)
def test_nested_tensors_are_to_be_padded(call, layout):
    message = (
        r"^(input|query|value): expected one size for all samples, got a nested tensor; pad it .*key_padding_mask$"
    )
    with pytest.raises(ConvNNError, match=message):
        TAKES[call](nested(layout))


def test_sparse_tensors_are_to_be_made_dense():
    for call in TAKES.values():
        with pytest.raises(ConvNNError, match=r"expected a dense tensor, got torch.sparse_coo; .*\.to_dense\(\)"):
            call(torch.randn(2, 5, 8).to_sparse())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_torch_s_encoder_leaves_its_fast_path_to_its_own_attention():
    """The fast path packs a padded batch into a nested tensor, in evaluation only."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    layer.self_attn = convnn.ConvNNMultiheadAttention(8, 2, k=3, batch_first=True)
    by_hand = nn.TransformerEncoder(layer, 2)
    plain = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    x, mask = torch.randn(2, 7, 8), torch.arange(7).expand(2, 7) >= torch.tensor([[7], [4]])
    for encoder in (by_hand, convnn.convert(plain, "convnn", k=3)):
        trained = encoder.train()(x, src_key_padding_mask=mask)
        with torch.no_grad():
            torch.testing.assert_close(encoder.eval()(x, src_key_padding_mask=mask), trained)
