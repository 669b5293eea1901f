"""What conversion may change of a layer's geometry: the hybrid's kernel, and the ConvNN's own padding and bias."""

import pytest
import torch
from torch import nn

from convnn import ConvNNError, convert

CONVOLUTIONS = {
    "same": nn.Conv2d(4, 6, 3, padding=1),
    "stride": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilation": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "padded more": nn.Conv2d(4, 6, 3, padding=3),
    "padded less": nn.Conv2d(4, 6, 5, padding=1),
    "1d": nn.Conv1d(4, 6, 5, padding=2),
    "depthwise": nn.Conv2d(4, 4, 7, padding=3, groups=4),
}


def input_of(conv):
    return torch.randn(2, 4, *(13, 11)[: conv.weight.dim() - 2])


@pytest.mark.parametrize(("name", "size"), [
    ("same", 1), ("same", 2), ("same", 4), ("same", 5), ("stride", 1), ("stride", 5), ("dilation", 5),
    ("padded more", 1), ("padded more", 5), ("padded less", 7), ("padded less", 3), ("1d", 3), ("1d", 2),
    ("depthwise", 3),
])  # fmt: skip
def test_another_kernel_keeps_the_output_s_size(name, size):
    conv = CONVOLUTIONS[name]
    x = input_of(conv)
    new = convert(conv, "hybrid", types=type(conv), kernel_size=size, k=4)
    assert set(new.conv.kernel_size) == {size}
    assert new.conv.dilation == conv.dilation
    assert new(x).shape == conv(x).shape


@pytest.mark.parametrize(("name", "size"), [("padded more", 2), ("padded less", 1)])
def test_kernels_that_cannot(name, size):
    with pytest.raises(ConvNNError, match=r"kernel_size: expected an odd size that can keep the output as large"):
        convert(CONVOLUTIONS[name], "hybrid", kernel_size=size)


def test_an_even_kernel_needs_stride_1():
    with pytest.raises(ConvNNError, match="kernel_size: expected odd sizes"):
        convert(CONVOLUTIONS["stride"], "hybrid", types=nn.Conv2d, kernel_size=2)


def test_another_kernel_has_no_weights_to_take():
    with pytest.raises(ConvNNError, match=r"init: expected a branch with the original's kernel \(3, 3\), got \(5, 5\)"):
        convert(CONVOLUTIONS["same"], "hybrid", kernel_size=5, init="from_original")
    same = convert(CONVOLUTIONS["same"], "hybrid", kernel_size=3, init="from_original")
    assert torch.equal(same.conv.weight, CONVOLUTIONS["same"].weight[3:])


@pytest.mark.parametrize("to", ["convnn", "hybrid"])
@pytest.mark.parametrize(("name", "padding"), [
    ("same", 0), ("same", 2), ("stride", 0), ("padded more", 2), ("padded less", 0), ("1d", 1), ("depthwise", 1),
])  # fmt: skip
def test_the_search_may_be_padded_otherwise(to, name, padding):
    conv = CONVOLUTIONS[name]
    x = input_of(conv)
    new = convert(conv, to, types=type(conv), candidate_padding=padding, k=4)
    assert new(x).shape == conv(x).shape
    branch = new if to == "convnn" else new.convnn
    assert set(branch.candidate_padding) == {padding}
    # Neighbours are searched among as many tokens as the padded map has.
    tokens = torch.Size([side + 2 * padding for side in x.shape[2:]]).numel()
    found = branch.neighbors(x[:, : branch.in_channels])
    assert found.index.max() < tokens


@pytest.mark.parametrize("to", ["convnn", "hybrid"])
def test_the_queries_are_the_kernel_s_centres(to):
    """With spatial neighbours, an output depends on the same inputs as the convolution's."""
    conv = nn.Conv2d(1, 2, 3, stride=2, padding=1)
    x = torch.randn(1, 1, 7, 7)
    wider = convert(conv, to, types=nn.Conv2d, candidate_padding=3, similarity="spatial")
    usual = convert(conv, to, types=nn.Conv2d, similarity="spatial")
    wider.load_state_dict(usual.state_dict())
    torch.testing.assert_close(wider(x), usual(x))


@pytest.mark.parametrize("to", ["convnn", "hybrid"])
def test_too_little_padding(to):
    with pytest.raises(ConvNNError, match=r"candidate_padding: expected at least 2 .*, got 1; raise it"):
        convert(CONVOLUTIONS["padded more"], to, candidate_padding=1)


@pytest.mark.parametrize(("given", "expected"), [(None, True), (True, True), (False, False)])
def test_the_convnn_s_bias(given, expected):
    options = {} if given is None else {"convnn_bias": given}
    assert (convert(CONVOLUTIONS["same"], "convnn", **options).bias is not None) == expected
    hybrid = convert(CONVOLUTIONS["same"], "hybrid", **options)
    assert ((hybrid.convnn.bias is not None), (hybrid.conv.bias is not None)) == (expected, True)


def test_a_hybrid_attention_s_kernel():
    timm = pytest.importorskip("timm")
    new = convert(timm.layers.Attention(8, 2), "hybrid", partner="conv", kernel_size=5, k=3)
    assert new.conv.kernel_size == (5,)
    assert new(torch.randn(1, 7, 8)).shape == (1, 7, 8)
