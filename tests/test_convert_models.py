"""convert on timm's, torchvision's and torch's models, and where it must start from the same function."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from convnn import (
    ConvNN2d,
    ConvNNAttention,
    ConvNNError,
    ConvNNMultiheadAttention,
    HybridAttention,
    HybridConvNN2d,
    Random,
    conversion_report,
    convert,
)

CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "no bias": nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "stride": nn.Conv2d(4, 6, 3, stride=(2, 3), padding=1),
    "no padding": nn.Conv2d(4, 6, 5),
    "same padding": nn.Conv2d(4, 6, (3, 5), padding="same", padding_mode="reflect"),
    "more padding than radius": nn.Conv2d(4, 6, 3, padding=3),
    "dilation": nn.Conv2d(4, 6, 3, padding=2, dilation=(2, 3)),
    "groups": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 7, padding=3, groups=4, padding_mode="circular"),
    "depthwise, multiplied": nn.Conv2d(4, 8, 3, padding=1, groups=4, stride=2, padding_mode="replicate"),
    "1x1": nn.Conv2d(4, 6, 1, stride=2),
    "1d": nn.Conv1d(4, 6, 5, stride=2, padding=3, dilation=2, groups=2),
    "3d": nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 2), dilation=(1, 2, 1)),
}


def input_of(conv: Any) -> Tensor:
    return torch.randn(2, 4, *(11, 9, 8)[: conv.weight.dim() - 2], dtype=conv.weight.dtype)


def randomize(model: nn.Module) -> nn.Module:
    """Give norms statistics and every parameter a value of its own, so that nothing cancels."""
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.5, 1.5)
            elif isinstance(part, nn.MultiheadAttention):
                part.in_proj_bias.normal_()
    return model


# ------------------------------------------------------------------------------------------ from the original's weights
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_spatial_layer_starts_as_the_convolution(name: str) -> None:
    conv = copy.deepcopy(CONVOLUTIONS[name]).double()
    x = input_of(conv)
    new = convert(conv, "convnn", types=type(conv), similarity="spatial", init="from_original")
    torch.testing.assert_close(new(x), conv(x), rtol=0, atol=0)
    assert not isinstance(new, type(conv))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("to", ["convnn", "hybrid"])
def test_the_replacement_has_the_shape_of_the_convolution(name: str, to: Any) -> None:
    conv = CONVOLUTIONS[name]
    x = input_of(conv)
    new = convert(conv, to, types=type(conv), k=4)
    assert new(x).shape == conv(x).shape
    assert new(x[0]).shape == conv(x[0]).shape
    branch = new if to == "convnn" else new.convnn
    assert branch.padding_mode == conv.padding_mode
    assert branch.stride == conv.stride
    assert (branch.bias is None) == (conv.bias is None)
    assert branch.weight.shape[:2] == (conv.out_channels // (1 if to == "convnn" else 2), conv.weight.shape[1])


def test_the_feature_layer_takes_the_kernel_slot_by_slot() -> None:
    conv = CONVOLUTIONS["groups"]
    new = convert(conv, "convnn", init="from_original")
    assert torch.equal(new.weight, conv.weight.flatten(2))
    assert torch.equal(new.bias, conv.bias)
    assert new.weight.data_ptr() != conv.weight.data_ptr()
    assert not torch.equal(convert(conv, "convnn").weight, conv.weight.flatten(2))


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if name not in ("1d", "3d")])
def test_the_hybrid_starts_as_the_convolution_in_its_channels(name: str, ratio: float) -> None:
    conv = copy.deepcopy(CONVOLUTIONS[name]).double()
    x = input_of(conv)
    new = convert(conv, types=nn.Conv2d, k=4, branch_ratio=ratio, init="from_original")
    share = int(ratio * conv.out_channels)
    y = new(x)
    torch.testing.assert_close(y[:, share:], conv(x)[:, share:], rtol=0, atol=1e-14)
    if share:
        torch.testing.assert_close(y[:, :share], new.convnn(x[:, : new.convnn_channels]), rtol=0, atol=1e-14)
        assert not torch.allclose(y[:, :share], conv(x)[:, :share])


@pytest.mark.parametrize("make", [nn.MultiheadAttention, timm.layers.Attention])
def test_attention_to_every_token_starts_as_the_original(make: Any) -> None:
    options = {"batch_first": True} if make is nn.MultiheadAttention else {"qkv_bias": True}
    attention = randomize(make(8, 2, **options)).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    new = convert(attention, "convnn", k=None, aggregation="sum", init="from_original")
    if make is nn.MultiheadAttention:
        for ours, theirs in zip(new(x, x, x), attention(x, x, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)
    else:
        torch.testing.assert_close(new(x), attention(x), rtol=0, atol=1e-14)
    nearest = convert(attention, "convnn", k=7, init="from_original")  # slot weights start at one
    y = nearest(x, x, x)[0] if make is nn.MultiheadAttention else nearest(x)
    torch.testing.assert_close(y, attention(x, x, x)[0] if make is nn.MultiheadAttention else attention(x))


@pytest.mark.parametrize("make", [nn.MultiheadAttention, timm.layers.Attention])
def test_random_initialisation_keeps_nothing_of_the_original(make: Any) -> None:
    options = {} if make is nn.MultiheadAttention else {"qkv_bias": True, "qk_norm": True, "norm_layer": nn.LayerNorm}
    attention = make(8, 2, **options)
    with torch.no_grad():
        for p in attention.parameters():
            p.normal_()
    new = convert(attention, "convnn", k=3)
    theirs = {tuple(p.flatten().tolist()) for p in attention.parameters()}
    assert not [name for name, p in new.named_parameters() if tuple(p.flatten().tolist()) in theirs]


# --------------------------------------------------------------------------------------------------------------- models
def test_resnet18_of_torchvision_is_the_same_function() -> None:
    net = randomize(torchvision.models.resnet18(num_classes=10)).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    new = convert(net, "convnn", similarity="spatial", init="from_original", types=nn.Conv2d)
    assert len(conversion_report(new).replaced) == 20
    torch.testing.assert_close(new(x), net(x), rtol=0, atol=1e-12)


def test_resnet50_of_timm() -> None:
    net = randomize(timm.create_model("resnet50", num_classes=10)).eval()
    x = torch.randn(1, 3, 64, 64)
    new = convert(net, "hybrid", init="from_original", k=4)
    assert sum(isinstance(part, HybridConvNN2d) for part in new.modules()) == 13
    assert all("conv2" in row.names[0] for row in conversion_report(new).replaced)
    y = new(x)
    assert y.shape == (1, 10)
    assert y.isfinite().all()
    spatial = convert(net, "convnn", similarity="spatial", init="from_original")
    torch.testing.assert_close(spatial(x), net(x), rtol=1e-4, atol=1e-4)


def test_vgg11_of_timm() -> None:
    net = timm.create_model("vgg11", num_classes=10, mlp_ratio=0.01).eval()  # its head is 100 million weights otherwise
    x = torch.randn(1, 3, 64, 64)
    assert len(conversion_report(convert(net)).replaced) == 9  # and the 7x7 that reads the last map
    features = convert(net, "hybrid", k=4, candidates=Random(9), where=lambda name, layer: name.startswith("features"))
    assert len(conversion_report(features).replaced) == 8
    assert features(x).shape == (1, 10)
    spatial = convert(net, "convnn", similarity="spatial", init="from_original")
    torch.testing.assert_close(spatial(x), net(x), rtol=1e-4, atol=1e-4)


def test_convnext_tiny_of_timm() -> None:
    net = timm.create_model("convnext_tiny", num_classes=10).eval()
    x = torch.randn(1, 3, 64, 64)
    hybrid = convert(net, "hybrid", k=4, init="from_original")
    assert sum(isinstance(part, HybridConvNN2d) for part in hybrid.modules()) == 18
    assert {part.convnn.weight.shape[1] for part in hybrid.modules() if isinstance(part, HybridConvNN2d)} == {1}
    assert hybrid(x).shape == (1, 10)
    spatial = convert(net, "convnn", similarity="spatial", init="from_original")
    torch.testing.assert_close(spatial(x), net(x), rtol=1e-4, atol=1e-4)


def test_vit_tiny_of_timm() -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10).eval()
    x = torch.randn(1, 3, 64, 64)
    new = convert(net, "convnn", k=None, aggregation="sum", init="from_original")
    assert sum(isinstance(part, ConvNNAttention) for part in new.modules()) == 12
    torch.testing.assert_close(new(x), net(x), rtol=1e-4, atol=1e-5)
    nearest = convert(net, "convnn", k=9).train()
    nearest(x).sum().backward()
    assert not [name for name, p in nearest.named_parameters() if p.grad is None or not p.grad.any()]
    hybrid = convert(net, "hybrid", k=9)
    assert sum(isinstance(part, HybridAttention) for part in hybrid.modules()) == 12
    assert hybrid(x).shape == (1, 10)


def test_what_computes_another_function_is_kept() -> None:
    net = timm.create_model("resnetv2_50x1_bit", num_classes=0)  # of weight-standardised convolutions
    kinds = {type(part) for part in net.modules() if isinstance(part, nn.Conv2d)}
    assert nn.Conv2d not in kinds
    with pytest.raises(ConvNNError, match="not a subclass with its own forward"):
        convert(net, "convnn")
    with pytest.raises(ConvNNError, match="got WindowAttention"):
        convert(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0), "convnn")


# ------------------------------------------------------------------------------------------------- torch's transformers
def encoder() -> nn.TransformerEncoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    return randomize(net).eval()


def same_attention(model: nn.Module) -> nn.Module:
    return convert(model, "convnn", k=None, aggregation="sum", init="from_original")


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", [None, torch.bool, torch.float32])
def test_the_encoder_of_torch_is_the_same_function(kind: torch.dtype | None, grad: bool) -> None:
    net, x = encoder(), torch.randn(2, 10, 8)
    new = same_attention(net)
    assert sum(isinstance(part, ConvNNMultiheadAttention) for part in new.modules()) == 2
    mask = None
    if kind is not None:
        mask = torch.zeros(2, 10, dtype=torch.bool)
        mask[1, 7:] = True
    given = mask if kind in (None, torch.bool) else torch.zeros(2, 10).masked_fill(mask, -torch.inf)
    with torch.set_grad_enabled(grad):
        ours, theirs = new(x, src_key_padding_mask=given), net(x, src_key_padding_mask=given)
    kept = torch.ones(2, 10, dtype=torch.bool) if mask is None else ~mask
    torch.testing.assert_close(ours[kept], theirs[kept], rtol=1e-5, atol=1e-5)


def test_the_encoder_attends_to_few_in_training_and_evaluation() -> None:
    new = convert(encoder(), "convnn", k=3)
    x = torch.randn(2, 10, 8)
    with torch.no_grad():
        without = new(x)
    torch.testing.assert_close(new(x), without)  # no fast path goes around the layer
    new.train()(x).sum().backward()
    assert all(p.grad is not None for p in new.parameters())


def test_the_transformer_of_torch_is_the_same_function() -> None:
    net = randomize(nn.Transformer(8, 2, 1, 1, 16, batch_first=True)).eval()
    source, target = torch.randn(2, 9, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(same_attention(net)(source, target), net(source, target), rtol=1e-5, atol=1e-5)


def test_a_causal_mask_is_refused_instead_of_ignored() -> None:
    causal = nn.Transformer.generate_square_subsequent_mask(10)
    with pytest.raises(ConvNNError, match="attn_mask"):
        convert(encoder(), "convnn", k=3)(torch.randn(2, 10, 8), mask=causal, is_causal=True)


def test_only_the_matching_layers_of_a_large_model_are_replaced() -> None:
    with torch.device("meta"):
        net = timm.create_model("resnet18")
    new = convert(net, "convnn", pattern=("layer3.*.conv2", "layer4.1.*"), types=nn.Conv2d)
    names = [name for name, part in new.named_modules() if isinstance(part, ConvNN2d)]
    assert names == ["layer3.0.conv2", "layer3.1.conv2", "layer4.1.conv1", "layer4.1.conv2"]
