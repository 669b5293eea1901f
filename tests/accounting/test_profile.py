import dataclasses
import json
import time
from functools import cache

import pytest
import timm
import torch
import torchvision
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import convnn
from convnn import ConvNN2d, ConvNNError, HybridConvNN2d, Random
from convnn.accounting import CONVENTIONS, count_flops, count_parameters, profile
from convnn.accounting.modes import training


def kept(model, *inputs):
    """The bytes that autograd really keeps: storages of saved tensors that are no parameters, each once."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.train()(*inputs)
    assert output.requires_grad
    return sum(size for key, size in storages.items() if key not in owned)


# ------------------------------------------------------------------------------------------------- activation memory
def test_a_linear_layer_keeps_its_input():
    x = torch.randn(2, 4)
    assert profile(nn.Linear(4, 5), x, runs=0).activation_bytes == 2 * 4 * 4


def test_the_input_of_a_frozen_layer_is_not_kept():
    layer = nn.Linear(4, 5).requires_grad_(False)
    assert profile(layer, torch.randn(2, 4), runs=0).activation_bytes == 0


def test_shared_storages_count_once():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.first(x) + self.second(x[:1])

    cost = profile(Both(), torch.randn(8, 4), runs=0)
    assert [row.activation_bytes for row in cost.rows] == [0, 8 * 4 * 4, 0]


def test_dropout_keeps_its_mask_in_training():
    layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.randn(3, 4)
    assert profile(layer, x, runs=0).activation_bytes == kept(layer, x) > 3 * 4 * 4
    assert profile(layer[1], x, runs=0).activation_bytes == 0


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)),
        ConvNN2d(3, 8, k=3, candidates=Random(9)),
        ConvNN2d(3, 8, k=3, weighting="softmax", similarity="dot"),
        HybridConvNN2d(3, 8, k=3),
    ],
    ids=["cnn", "sampled", "softmax", "hybrid"],
)
def test_activation_memory_is_what_autograd_keeps(model):
    x = torch.randn(2, 3, 8, 8)
    assert profile(model, x, runs=0).activation_bytes == kept(model, x)


def test_bounded_memory_shows():
    """The dense implementation keeps k copies of the tokens; the tiled one keeps the tokens."""
    x = torch.randn(1, 16, 12, 12)
    dense, tiled = (profile(ConvNN2d(16, 16, k=9, impl=i), x, runs=0).activation_bytes for i in ("dense", "tiled"))
    assert dense >= 9 * 16 * 144 * 4
    assert tiled < dense / 3


def test_a_batch_that_batch_norm_cannot_train_on_is_noted():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    cost = profile(model, torch.randn(1, 4), runs=0)
    assert cost.activation_bytes is None
    assert cost.notes == ("activation memory: not measured, batch norm cannot train on this batch; use a larger one",)
    assert profile(model, torch.randn(2, 4), runs=0).activation_bytes > 0


def test_other_errors_are_the_models_own():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        profile(nn.Linear(4, 4), torch.randn(2, 5))


# -------------------------------------------------------------------------------------------------------------- times
def test_milliseconds_of_layers_and_of_the_whole(monkeypatch):
    """By a clock that only the layers move: what a container's layers take is theirs."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, x):
            now[0] += self.seconds
            return x

    model = nn.Sequential(Slow(0.25), nn.Sequential(Slow(0.5), nn.Identity()))
    cost = profile(model, torch.zeros(1), runs=3, activations=False)
    assert (cost.times, cost.milliseconds) == ((750.0,) * 3, 750.0)
    assert {row.name: row.milliseconds for row in cost.rows} == {"": 0, "0": 250.0, "1": 0, "1.0": 500.0, "1.1": 0}


def test_no_runs_time_nothing():
    cost = profile(nn.Identity(), torch.zeros(1), runs=0)
    assert cost.milliseconds is None
    assert cost.times == ()
    assert cost.rows[0].milliseconds is None


def test_the_meta_device_has_everything_but_times():
    layer = HybridConvNN2d(6, 8, k=5)
    x = torch.randn(2, 6, 7, 7)
    real, counted = profile(layer, x, runs=0), profile(layer.to("meta"), x.to("meta"))
    assert (counted.flops, counted.parameters) == (real.flops, real.parameters)
    assert counted.activation_bytes == real.activation_bytes
    assert counted.milliseconds is None
    assert counted.notes == ("milliseconds: not measured, nothing runs on the meta device",)


# --------------------------------------------------------------------------------------------------------------- rows
@cache
def networks():
    sampled = {"candidates": Random(16)}
    return {
        "timm": (timm.create_model("resnet18"), (2, 3, 64, 64)),
        "timm hybrid": (convnn.convert(timm.create_model("resnet18"), "hybrid", **sampled), (2, 3, 64, 64)),
        "timm attention": (
            convnn.convert(timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2), "convnn"),
            (1, 3, 64, 64),
        ),
        "torchvision": (convnn.convert(torchvision.models.resnet18(), "convnn", **sampled), (2, 3, 64, 64)),
        "torch": (convnn.convert(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), "convnn", k=3), (2, 9, 16)),
        "layer": (ConvNN2d(3, 8), (1, 3, 8, 8)),
    }


@pytest.mark.parametrize("origin", networks())
def test_rows_add_up_whatever_the_model(origin):
    model, shape = networks()[origin]
    names = dict(model.named_modules())
    cost = profile(model, input_size=shape, runs=1)
    assert cost.inputs == (shape,)
    assert cost.parameters == count_parameters(model) == sum(row.parameters for row in cost.rows)
    assert cost.activation_bytes == sum(row.activation_bytes for row in cost.rows) > 0
    assert cost.milliseconds > 0
    assert all(type(names[row.name]).__name__ == row.kind for row in cost.rows)
    for convention in CONVENTIONS:
        cost = profile(model, input_size=shape, convention=convention, activations=False, runs=0)
        assert cost.convention == convention
        assert cost.flops == sum(cost.operators.values()) == sum(row.flops for row in cost.rows) > 0
        assert all(row.flops == sum(row.operators.values()) for row in cost.rows)
        assert cost.flops == count_flops(model, torch.randn(shape), convention=convention)


def test_a_convnn_layer_is_one_row_and_a_hybrid_its_parts():
    model = nn.Sequential(HybridConvNN2d(3, 8, k=5), ConvNN2d(8, 8, k=3, aggregation="depthwise_separable"))
    cost = profile(model, input_size=(1, 3, 6, 6), runs=0)
    rows = {row.name: row for row in cost.rows}
    assert set(rows) == {"", "0", "0.conv", "0.convnn", "0.mix", "1"}
    assert rows["1"].parameters == 8 * 3 + 8 * 8 + 8
    assert rows["1"].flops == 2 * 36 * 36 * 8 + 2 * 36 * 3 * 8 + 2 * 36 * 8 * 8
    assert rows["0"].flops == rows["0"].parameters == rows[""].parameters == 0


def test_shared_layers_are_one_row_called_twice():
    layer = nn.Linear(4, 4)
    cost = profile(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 4), runs=2)
    row = cost.rows[1]
    assert (row.name, row.calls, row.parameters, row.flops) == ("0", 2, 20, 2 * (2 * 2 * 4 * 4))


def test_a_tied_parameter_counts_for_the_first():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert [row.parameters for row in profile(model, torch.randn(2, 4), runs=0).rows] == [0, 20, 4]


def test_what_a_container_does_itself_is_its_own_row():
    class Container(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, 4))
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return F.relu(self.layer(x)) @ self.scale

    own, layer = profile(Container(), torch.randn(2, 4), runs=0).rows
    assert (own.parameters, own.flops, own.activation_bytes) == (16, 64, 2 * 4 * 4)
    assert (layer.parameters, layer.flops, layer.activation_bytes) == (20, 64, 2 * 4 * 4)


# --------------------------------------------------------------------------------------------------- the model is left
def test_profiling_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), ConvNN2d(4, 4, k=3))
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    profile(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), runs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [True, True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_generator_of_candidates_is_not_advanced():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    profile(ConvNN2d(3, 4, k=3, candidates=Random(5, generator=generator)), torch.randn(1, 3, 6, 6), runs=1)
    assert torch.equal(generator.get_state(), before)


def test_hooks_are_gone_after_an_error_too():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            profile(model, torch.randn(2, 4))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_buffers_come_back_even_if_they_are_replaced():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))
            self.register_buffer("one", torch.ones(1).expand(3))
            self.layer = nn.Linear(1, 1)

        def forward(self, x):
            self.count = self.count + 1
            return self.layer(x)

    model = Counting()
    kept_buffer = model.count
    with training(model):
        model(torch.zeros(1, 1))
        assert model.count == 1
    assert model.count is kept_buffer
    assert model.count == 0


# ------------------------------------------------------------------------------------------------- what can be printed
def shown(table):
    console = Console(width=140, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_tables_name_the_convention_and_hold_the_totals():
    model = nn.Sequential(HybridConvNN2d(3, 8, k=5), nn.Flatten(), nn.Linear(288, 10))
    cost = profile(model, input_size=(1, 3, 6, 6), convention="gather", runs=2)
    untimed = profile(model, input_size=(1, 3, 6, 6), convention="gather", runs=0)  # a short time may be a long share
    totals, layers = shown(cost.table()), shown(untimed.table(per_layer=True))
    assert f"{cost.flops:,}" in totals
    assert f"{cost.parameters:,}" in totals
    assert "FLOPs, gather" in totals
    assert "n = 2" in totals
    assert all(f"  {name}" in totals for name in ("bmm", "conv1d", "conv2d", "addmm"))
    assert "gather" in layers
    assert all(name in layers for name in ("0.convnn", "0.conv", "0.mix", "ConvNN2d"))
    assert "Flatten" not in layers  # it costs nothing
    assert "total" in layers


def test_notes_are_printed():
    cost = profile(nn.Linear(4, 4, device="meta"), input_size=(2, 4))
    assert "milliseconds: not measured" in shown(cost.table())
    assert "forward pass" not in shown(cost.table())


def test_json_holds_everything():
    cost = profile(ConvNN2d(3, 8, k=3), input_size=(1, 3, 6, 6), runs=2)
    values = json.loads(cost.to_json())
    assert values["convention"] == "executed"
    assert values["flops"] == cost.flops
    assert values["inputs"] == [[1, 3, 6, 6]]
    assert values["rows"][0]["operators"] == dict(cost.operators)
    assert "rows" not in json.loads(cost.to_json(per_layer=False))
    assert cost.gflops == cost.flops / 1e9


def test_json_has_null_for_what_is_not_finite():
    cost = profile(nn.Linear(4, 5), input_size=(2, 4), runs=0)
    text = dataclasses.replace(cost, milliseconds=float("nan")).to_json()
    assert json.loads(text, parse_constant=pytest.fail)["milliseconds"] is None


# ------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, r"^inputs: expected tensors, or input_size, got neither; e\.g\. profile"),
        ((torch.zeros(1, 4),), {"input_size": (1, 4)}, r"^inputs: expected tensors, or input_size, got both"),
        ((torch.zeros(1, 4),), {"convention": "execute"}, r"^convention: expected one of .* did you mean 'executed'\?"),
        ((torch.zeros(1, 4),), {"runs": -1}, r"^runs: expected a whole number of at least 0, got -1"),
        ((), {"input_size": (0, 4)}, r"^input_size: expected a whole number of at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments, options, message):
    with pytest.raises(ConvNNError, match=message):
        profile(nn.Linear(4, 4), *arguments, **options)


def test_count_flops_takes_a_convention():
    layer, x = ConvNN2d(3, 8, k=3), torch.randn(1, 3, 5, 5)
    assert count_flops(layer, x, convention="published") == 2 * 25 * 25 * 3
    with pytest.raises(
        ConvNNError, match=r"^convention: expected one of 'executed', 'gather', 'published', got 'true'"
    ):
        count_flops(layer, x, convention="true")


def test_a_layer_of_an_unknown_kind_has_no_published_form():
    from convnn.nn.layer import NeighborLayer
    from convnn.nn.options import LayerOptions

    class Other(NeighborLayer):
        def __init__(self):
            super().__init__(LayerOptions(3, similarity="dot", aggregation="sum"))

        def forward(self, x):
            return x

    assert count_flops(Other(), torch.zeros(1)) == 0
    with pytest.raises(
        ConvNNError, match=r"^layer: expected a ConvNN or a ConvNN attention layer, got Other; count it"
    ):
        count_flops(Other(), torch.zeros(1), convention="gather")
