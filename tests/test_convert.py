"""convert: which layers it takes, what it keeps of them, what it reports; on small nets of its own."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnn import (
    ConversionWarning,
    ConvNN1d,
    ConvNN2d,
    ConvNN3d,
    ConvNNAttention,
    ConvNNError,
    ConvNNMultiheadAttention,
    HybridConvNN2d,
    Random,
    conversion_report,
    convert,
)

OURS = (ConvNN1d, ConvNN2d, ConvNN3d, HybridConvNN2d, ConvNNAttention, ConvNNMultiheadAttention)
TO = ["convnn", "hybrid"]


class Net(nn.Module):
    """Two blocks, of which the second is used twice, a strided stem, a 1x1 and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.stages = nn.ModuleList([self.block, nn.Conv2d(8, 8, 1)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.first(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(("to", "kind"), [("convnn", ConvNN2d), ("hybrid", HybridConvNN2d)])
def test_by_default_kernels_above_1_without_stride_are_replaced(to: Any, kind: type[nn.Module]) -> None:
    net = convert(Net(), to)
    assert [name for name, part in net.named_modules() if isinstance(part, kind)] == ["first.0", "block.0"]
    assert type(net.stem) is nn.Conv2d
    assert type(net.stages[1]) is nn.Conv2d
    reasons = {row.names[0]: row.reason for row in conversion_report(net).kept}
    assert "stride" in reasons["stem"]
    assert "1x1" in reasons["stages.1"]


def test_the_hybrid_is_the_default() -> None:
    assert isinstance(convert(Net()).block[0], HybridConvNN2d)


def test_a_shared_layer_stays_one_layer() -> None:
    net = convert(Net(), "convnn")
    assert net.block[0] is net.stages[0][0]
    assert conversion_report(net).replaced[1].names == ("block.0", "stages.0.0")
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_one_layer_under_two_names_and_nested_stays_one_layer() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = convert(nn.Sequential(conv, nn.Sequential(nn.ReLU(), conv)), "convnn")
    assert net[0] is net[1][1]
    assert isinstance(net[0], ConvNN2d)
    assert len(conversion_report(net).replaced) == 1


def test_a_name_of_a_shared_layer_selects_all_its_names() -> None:
    net = convert(Net(), "convnn", pattern="stages.0.*")
    assert isinstance(net.block[0], ConvNN2d)
    assert net.block[0] is net.stages[0][0]
    assert type(net.first[0]) is nn.Conv2d


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"types": nn.Conv2d}, ["stem", "first.0", "block.0", "stages.1"]),
        ({"types": (nn.Conv1d, nn.Conv2d), "pattern": "st*"}, ["stem", "block.0", "stages.1"]),
        ({"pattern": "first.0"}, ["first.0"]),
        ({"pattern": ("stem", "first.?")}, ["stem", "first.0"]),
        ({"where": lambda name, layer: layer.in_channels == 3}, ["stem"]),
        ({"where": lambda name, layer: layer.stride == (1, 1), "pattern": "s*"}, ["block.0", "stages.1"]),
    ],
)
def test_types_pattern_and_where_must_all_agree(choice: dict[str, Any], expected: list[str]) -> None:
    net = convert(Net(), "convnn", k=4, **choice)
    assert [name for name, part in net.named_modules() if isinstance(part, ConvNN2d)] == expected
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 5)


@pytest.mark.parametrize("to", TO)
def test_the_original_is_untouched_unless_in_place(to: Any) -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    new = convert(net, to)
    assert new is not net
    assert not any(isinstance(part, OURS) for part in net.modules())
    assert not any(p is q for p in new.parameters() for q in net.parameters())
    assert not hasattr(net, "_convnn_report")
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    head = net.head
    assert convert(net, to, inplace=True) is net
    assert net.head is head
    assert isinstance(net.block[0], OURS)
    assert conversion_report(net).replaced


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3), nn.Conv3d(4, 6, 3, padding=1)])
def test_one_layer_can_be_the_model(layer: Any, inplace: bool) -> None:
    new = convert(layer, "convnn", inplace=inplace, k=5)
    assert isinstance(new, OURS)
    x = torch.randn(2, 4, *[5] * (layer.weight.dim() - 2))
    assert new(x).shape == layer(x).shape
    assert len(conversion_report(new).replaced) == 1


def test_converting_twice_does_not_nest() -> None:
    once = convert(Net(), "hybrid", pattern="first.*")
    twice = convert(once, "hybrid")
    assert isinstance(twice.first[0].conv, nn.Conv2d)
    assert type(twice.first[0].mix) is nn.Conv2d
    assert isinstance(twice.block[0], HybridConvNN2d)
    assert [row.names[0] for row in conversion_report(twice).replaced] == ["first.0", "block.0"]
    with pytest.raises(ConvNNError, match="a choice of convolutions"):
        convert(twice, "hybrid")


def test_what_cannot_be_converted_is_warned_and_reported() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 4), nn.MultiheadAttention(4, 2, kdim=3))
    with pytest.warns(ConversionWarning, match=r"^2 of the chosen .* 1 \(kernel_size.*odd.*; 2 \(attention.*kdim"):
        new = convert(net, "convnn")
    assert type(new[1]) is nn.Conv2d
    kept = {row.names: row.reason for row in conversion_report(new).kept}
    assert "odd" in kept["1",]
    assert "kdim" in kept["2",]


def test_a_type_that_was_asked_for_and_cannot_be_converted_is_warned() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3))
    with pytest.warns(ConversionWarning, match="ConvTranspose2d|^1 of the chosen"):
        convert(net, "convnn", types=(nn.Conv2d, nn.ConvTranspose2d))


def test_nothing_is_warned_when_all_goes_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(Net(), "hybrid")


@pytest.mark.parametrize(
    "attach",
    [
        lambda conv: conv.register_forward_hook(lambda *_: None),
        lambda conv: conv.register_full_backward_pre_hook(lambda *_: None),
        nn.utils.parametrizations.weight_norm,
    ],
)
def test_hooks_and_parametrisations_are_kept_beside_what_is_converted(attach: Callable[[nn.Module], Any]) -> None:
    net = Net()
    attach(net.first[0])
    with pytest.warns(ConversionWarning, match=r"first\.0 \(conv: expected a layer without"):
        new = convert(net, "convnn")
    assert isinstance(new.block[0], ConvNN2d)
    assert isinstance(new.first[0], nn.Conv2d)


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class DoubledAttention(nn.MultiheadAttention):
    def forward(self, *inputs: Any, **options: Any) -> Any:
        attended, weights = super().forward(*inputs, **options)
        return 2 * attended, weights


@pytest.mark.parametrize("layer", [Doubled(4, 4, 3), DoubledAttention(4, 2)])
def test_a_subclass_with_its_own_forward_is_refused(layer: nn.Module) -> None:
    with pytest.raises(ConvNNError, match=f"got {type(layer).__name__}"):
        convert(layer, "convnn", k=3)


def test_the_report_is_a_table() -> None:
    net = convert(Net(), "hybrid", branch_ratio=0.25, k=4, similarity="sqeuclidean", candidates=Random(9))
    lines = str(conversion_report(net)).splitlines()
    assert lines[0].split() == ["layer", "was", "is", "parameters"]
    assert lines[1].startswith("first.0 ")
    assert "Conv2d 8 -> 8, 3x3" in lines[1]
    assert "HybridConvNN2d k=4, sqeuclidean, Random(r=9, seed=None, generator=None), 0.25 of 8" in lines[1]
    assert lines[1].endswith(f"{8 * 8 * 9} -> {8 * 6 * 9 + 2 * 8 * 4 + 72}")
    assert lines[2].startswith("block.0 = stages.0.0 ")
    assert "kept: a 1x1 convolution has no neighbours" in lines[4]
    assert lines[-1].startswith("2 replaced (")
    assert lines[-1].endswith("2 kept")


def test_the_counts_of_the_report_are_the_layers_own() -> None:
    net, new = Net(), convert(Net(), "convnn", k=4)
    for row in conversion_report(new).replaced:
        for name in row.names:
            assert row.parameters_before == sum(p.numel() for p in net.get_submodule(name).parameters())
            assert row.parameters_after == sum(p.numel() for p in new.get_submodule(name).parameters())


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("init", ["random", "from_original"])
def test_training_mode_dtype_and_device_are_kept(to: Any, init: Any) -> None:
    net = Net().to(torch.float64)
    net.first.eval()
    new = convert(net, to, init=init)
    assert all(part.training is False for part in new.first.modules())
    assert all(part.training for part in new.block.modules())
    assert {p.dtype for p in new.parameters()} == {torch.float64}
    meta = convert(Net().to("meta"), to, init=init)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert meta(torch.zeros(2, 3, 8, 8, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("to", TO)
def test_a_converted_model_can_be_copied_pickled_saved_and_loaded(to: Any) -> None:
    net = convert(Net(), to, candidates=Random(8), k=4).eval()
    x = torch.randn(2, 3, 12, 12)
    expected = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
        assert str(conversion_report(twin)) == str(conversion_report(net))
    fresh = convert(Net(), to, candidates=Random(8), k=4).eval()
    assert not torch.equal(fresh(x), expected)
    assert fresh.load_state_dict(net.state_dict()) is not None
    torch.testing.assert_close(fresh(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("to", TO)
def test_every_layer_draws_its_own_candidates_in_evaluation(to: Any) -> None:
    net = convert(Net(), to, types=nn.Conv2d, k=4, candidates=Random(6)).eval()
    seeds = [part.eval_seed for part in net.modules() if isinstance(part, ConvNN2d)]
    assert len(seeds) == 4
    assert len(set(seeds)) == 4


def test_layers_of_a_second_conversion_draw_others_than_the_first() -> None:
    net = convert(convert(Net(), "convnn", pattern="first.*"), "convnn", pattern="block.*")
    assert net.first[0].eval_seed != net.block[0].eval_seed


@pytest.mark.parametrize("to", TO)
@pytest.mark.parametrize("init", ["random", "from_original"])
def test_a_converted_model_trains_every_parameter(to: Any, init: Any) -> None:
    net = convert(Net(), to, init=init, types=nn.Conv2d, k=9, where=lambda name, layer: layer.kernel_size == (3, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, target = torch.randn(4, 3, 12, 12), torch.randint(5, (4,))
    loss = nn.functional.cross_entropy(net(x), target)
    loss.backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
    optimizer.step()
    assert nn.functional.cross_entropy(net(x), target) < loss
