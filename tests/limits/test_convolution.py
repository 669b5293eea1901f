"""The spatial ConvNN is a convolution: same outputs and gradients, by the native kernel and by the general path."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convnn
from convnn.testing import assert_close, covering_set, layer_with_gradients

LAYERS = {nn.Conv1d: convnn.ConvNN1d, nn.Conv2d: convnn.ConvNN2d, nn.Conv3d: convnn.ConvNN3d}
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}
PATHS = {"auto": "impl conv", "dense": "impl dense"}


@pytest.fixture
def log(caplog):
    """The debug log of the choice of an implementation."""
    caplog.set_level(logging.DEBUG, "convnn")
    return caplog


def conv_results(conv: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """A convolution's output and gradients, with the weight's in the shape of slots."""
    named = layer_with_gradients(conv, x)
    return {**named, "gradient of weight": named["gradient of weight"].flatten(2)}


def check(conv: nn.Module, x: Tensor, log: Any, impls: tuple[str, ...] = ("auto", "dense")) -> None:
    """Compare ``from_conv`` with its convolution, in the precision of ``x``, by every implementation."""
    conv = conv.to(x.dtype)
    expected = conv_results(conv, x)
    for impl in impls:
        layer = LAYERS[type(conv)].from_conv(conv, impl=impl)
        log.clear()
        actual = layer_with_gradients(layer, x)
        assert log.messages[0].startswith(PATHS[impl]), f"{conv} by {impl} ran: {log.messages}"
        assert_close(actual, expected, limit=LIMITS[x.dtype], case=f"{conv}, input {tuple(x.shape)}, {impl}, {x.dtype}")


def fits(case: dict[str, Any], size: tuple[int, ...]) -> bool:
    """Whether torch has this convolution: the kernel fits into the padded map."""
    axes = [broadcast(case[name], len(size)) for name in ("kernel", "dilation", "padding")]
    return all(length + 2 * p > d * (kernel - 1) for length, kernel, d, p in zip(size, *axes, strict=True))


def case_id(case: dict[str, Any]) -> str:
    return "-".join(map(str, case.values()))


def broadcast(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * dims


def make(kind: type[nn.Module], channels: int, case: dict[str, Any]) -> nn.Module:
    groups = channels if case["groups"] == "C" else case["groups"]
    return kind(
        channels, 2 * channels, case["kernel"], stride=case["stride"], dilation=case["dilation"], groups=groups,
        padding=case["padding"], padding_mode=case["mode"], bias=case.get("bias", True), dtype=torch.float64,
    )  # fmt: skip


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_every_1d_convolution(kernel, mode, log):
    x = torch.randn(2, 4, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for stride, dilation, groups, padding in itertools.product((1, 2, 3), (1, 2), (1, 2, "C"), range(4)):
        case = {
            "kernel": kernel,
            "stride": stride,
            "dilation": dilation,
            "groups": groups,
            "padding": padding,
            "mode": mode,
        }
        conv = make(nn.Conv1d, 4, case)
        check(conv, x, log)
        check(conv, x.float(), log)


OPTIONS_2D = {
    "kernel": (1, 3, 5, 7, (3, 1), (1, 5), (7, 3)),
    "stride": (1, 2, 3, (1, 2), (3, 1)),
    "dilation": (1, 2, (2, 1)),
    "groups": (1, 2, "C"),
    "padding": (0, 1, 2, 3, (0, 3), (2, 1), "same", "valid"),
    "mode": PADDING_MODES,
    "size": ((15, 13), (13, 18), (16, 16)),
    "bias": (True, False),
    "layout": (torch.contiguous_format, torch.channels_last),
    "dtype": (torch.float64, torch.float32),
}


def exists_2d(case: dict[str, Any]) -> bool:
    if isinstance(case["padding"], str):
        return case["padding"] == "valid" or case["stride"] == 1
    return fits(case, case["size"])


@pytest.mark.parametrize(
    "case", covering_set(OPTIONS_2D, allowed=exists_2d), ids=lambda case: "-".join(map(str, case.values()))
)
def test_2d_convolutions(case, log):
    x = torch.randn(2, 4, *case["size"], dtype=case["dtype"]).contiguous(memory_format=case["layout"])
    check(make(nn.Conv2d, 4, case), x, log)


OPTIONS_3D = {
    "kernel": (1, 3, (1, 3, 5), (7, 1, 3)),
    "stride": (1, 2, (3, 1, 2)),
    "dilation": (1, (1, 2, 1)),
    "groups": (1, 2, "C"),
    "padding": (0, 1, 2, (3, 0, 1)),
    "mode": ("zeros", "replicate", "circular"),
    "layout": (torch.contiguous_format, torch.channels_last_3d),
    "dtype": (torch.float64, torch.float32),
}


@pytest.mark.parametrize(
    "case",
    covering_set(OPTIONS_3D, allowed=lambda case: fits(case, (7, 5, 6))),
    ids=lambda case: "-".join(map(str, case.values())),
)
def test_3d_convolutions(case, log):
    x = torch.randn(2, 4, 7, 5, 6, dtype=case["dtype"]).contiguous(memory_format=case["layout"])
    check(make(nn.Conv3d, 4, case), x, log)


@pytest.mark.parametrize("kernel", [5, 7])
def test_a_large_3d_kernel(kernel, log):
    check(nn.Conv3d(1, 2, kernel, padding=kernel // 2), torch.randn(1, 1, 4, 5, 3, dtype=torch.float64), log)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), (5, 2), (7, 3)])
def test_k_nearest_positions_are_the_kernel_without_any_window(kernel, padding, dtype, log):
    """All candidates, k = kernel^2 and the padding of a "same" convolution: nothing else tells it to convolve."""
    conv = nn.Conv2d(3, 5, kernel, padding=padding, dtype=dtype)
    x = torch.randn(2, 3, 8, 11, dtype=dtype)
    expected = conv_results(conv, x)
    for impl, path in PATHS.items():
        layer = convnn.ConvNN2d(
            3, 5, k=kernel**2, candidate_padding=padding, similarity="spatial", impl=impl, dtype=dtype
        )
        layer.load_state_dict({"weight": conv.weight.flatten(2), "bias": conv.bias})
        log.clear()
        actual = layer_with_gradients(layer, x)
        assert log.messages[0].startswith(path)
        assert_close(actual, expected, limit=LIMITS[dtype], case=impl)


@pytest.mark.parametrize(
    ("kind", "size"), [(nn.Conv1d, (9,)), (nn.Conv2d, (6, 9)), (nn.Conv3d, (4, 3, 5))], ids=lambda value: str(value)
)
def test_a_convolution_s_state_dict_loads_as_it_is(kind, size):
    conv, other = (kind(2, 4, 3, padding=1, dtype=torch.float64) for _ in range(2))
    layer = LAYERS[kind].from_conv(other)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    assert not torch.allclose(layer(x), conv(x))
    layer.load_state_dict(conv.state_dict())
    assert_close(layer_with_gradients(layer, x), conv_results(conv, x))


@pytest.mark.parametrize(
    ("kind", "size"), [(nn.Conv1d, (9,)), (nn.Conv2d, (6, 9)), (nn.Conv3d, (4, 3, 5))], ids=lambda value: str(value)
)
@pytest.mark.parametrize("impl", PATHS)
def test_an_input_without_batch(kind, size, impl):
    conv = kind(2, 4, 3, stride=2, padding=1, dtype=torch.float64)
    x = torch.randn(2, *size, dtype=torch.float64)
    layer = LAYERS[kind].from_conv(conv, impl=impl)
    assert_close(layer_with_gradients(layer, x), conv_results(conv, x))


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_aggregation_is_a_depthwise_convolution(multiplier, impl):
    conv = nn.Conv2d(4, 4 * multiplier, 3, padding=1, groups=4, dtype=torch.float64)
    layer = convnn.ConvNN2d(
        4,
        4 * multiplier,
        k=9,
        candidate_padding=1,
        similarity="spatial",
        aggregation="depthwise",
        impl=impl,
        dtype=torch.float64,
    )
    layer.load_state_dict(conv.state_dict())
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    assert_close(layer_with_gradients(layer, x), conv_results(conv, x))


@pytest.mark.parametrize("impl", PATHS)
def test_depthwise_separable_aggregation_is_depthwise_then_pointwise(impl):
    depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, dtype=torch.float64)
    pointwise = nn.Conv2d(4, 6, 1, dtype=torch.float64)
    layer = convnn.ConvNN2d(
        4,
        6,
        k=9,
        candidate_padding=1,
        similarity="spatial",
        aggregation="depthwise_separable",
        impl=impl,
        dtype=torch.float64,
    )
    weights = {
        "weight": depthwise.weight,
        "pointwise.weight": pointwise.weight.flatten(1),
        "pointwise.bias": pointwise.bias,
    }
    layer.load_state_dict(weights)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    actual = layer_with_gradients(layer, x)
    expected = layer_with_gradients(nn.Sequential(depthwise, pointwise), x)
    for name in ("output", "gradient of input"):
        assert_close({name: actual[name]}, {name: expected[name]})
    assert_close(
        {"weight": actual["gradient of pointwise.weight"], "bias": actual["gradient of pointwise.bias"]},
        {"weight": expected["gradient of 1.weight"].flatten(1), "bias": expected["gradient of 1.bias"]},
    )


@pytest.mark.parametrize("impl", PATHS)
def test_the_memory_format_of_the_input_is_that_of_the_output(impl):
    conv = nn.Conv2d(4, 6, 3, padding=1)
    layer = convnn.ConvNN2d.from_conv(conv, impl=impl)
    x = torch.randn(2, 4, 7, 5)
    assert layer(x).is_contiguous()
    assert layer(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


def test_the_map_may_change_its_size_at_every_call():
    conv = nn.Conv2d(2, 3, 3, padding=1, stride=2, dtype=torch.float64)
    layer = convnn.ConvNN2d.from_conv(conv)
    for size in [(5, 9), (9, 5), (3, 3), (1, 1), (16, 2)]:
        x = torch.randn(1, 2, *size, dtype=torch.float64)
        assert_close(layer_with_gradients(layer, x), conv_results(conv, x), case=size)


def test_an_empty_batch():
    conv = nn.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(0, 2, 5, 4)
    for impl in PATHS:
        assert convnn.ConvNN2d.from_conv(conv, impl=impl)(x).shape == conv(x).shape
