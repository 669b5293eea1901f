"""The published networks, against the figures that were published and against plain torch."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from convnn import Blend, ConvNN2d, ConvNNAttention, ConvNNError, Grid, HybridConvNN2d, Random
from convnn.models import CONFIGURATIONS, create_model, published

from ..published_rows import rows


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(build_model, *arguments, **options):
    with torch.device("meta"):
        return build_model(*arguments, **options)


def parts(model, kind):
    return [part for part in model.modules() if type(part) is kind]


# -------------------------------------------------------------------------------------------------- parameters, exactly
def test_there_are_214_rows():
    """What each of them has is counted in tests/accounting/test_published.py, which builds them all once."""
    assert len(rows()) == 214


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50_conv", 25_583_592),
        ("resnet50_convnn_all", 25_557_032),
        ("resnet50_hybrid_all", 26_474_760),
        ("resnet50_hybrid_random32", 26_474_760),
        ("resnet50_hybrid_grid5", 26_474_760),
        ("vgg11_conv", 130_015_690),
        ("vgg11_convnn_all", 130_015_690),
        ("vgg11_hybrid_random144", 130_015_690),
        ("vgg11_hybrid_blend_coordinates", 130_040_458),
        ("vit_tiny_attention", 5_479_306),
        ("vit_tiny_knn", 5_479_306),
        ("vit_tiny_convnn_random32", 5_500_042),
        ("vit_tiny_convnn_standard", 5_479_306 + 12 * 192 * 192 * 9),
        ("vit_base_attention", 86_379_496),
        ("vit_base_convnn_all", 86_386_408),
        ("vit_base_convnn_random32", 86_386_408),
        ("vit_base_convnn_k16", 86_391_784),
        ("vit_base_convnn_grid128", 86_391_784),
    ],
)
def test_parameters_of_named_configurations(name, expected):
    assert parameters(on_meta(create_model, name)) == expected


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name.startswith(("vgg11_", "resnet50_"))])
def test_every_name_says_what_is_in_the_model(name):
    model = on_meta(create_model, name)
    branch = [part for part in model.modules() if type(part) is ConvNN2d]
    assert bool(branch) == (not name.endswith("_conv"))
    found = re.search("(random|grid)([0-9]+)$", name)
    kinds = {"random": Random, "grid": Grid}
    expected = kinds[found[1]](int(found[2])) if found else "all"
    assert all(layer.candidates == expected and layer.k == 9 for layer in branch)


# ------------------------------------------------------------------------------------------------ what is replaced, how
def test_resnet50_replaces_the_13_convolutions_of_stride_1():
    model = on_meta(create_model, "resnet50_hybrid_random32")
    layers = parts(model, HybridConvNN2d)
    assert [sum(type(p) is HybridConvNN2d for p in getattr(model, f"layer{n}").modules()) for n in (1, 2, 3, 4)] == [
        3, 3, 5, 2,
    ]  # fmt: skip
    for layer in layers:
        assert (layer.kernel_size, layer.padding, layer.convnn.candidate_padding) == ((3, 3), (1, 1), (1, 1))
        assert layer.convnn.out_channels == layer.out_channels // 2
        assert layer.convnn.candidates == Random(32)
        assert layer.convnn.bias is None
        assert layer.conv.bias is not None
        assert layer.mix.bias is not None
    assert all(conv.kernel_size != (3, 3) or conv.stride == (2, 2) for conv in outside(model))


def outside(model):
    """Convolutions that are no part of a hybrid."""
    inside = {id(part) for layer in parts(model, HybridConvNN2d) for part in layer.modules()}
    return [conv for conv in parts(model, nn.Conv2d) if id(conv) not in inside]


def test_resnet50_convolution_has_every_bias_and_convnn_none():
    assert all(conv.bias is not None for conv in parts(on_meta(create_model, "resnet50_conv"), nn.Conv2d))
    convnn = on_meta(create_model, "resnet50_convnn_all")
    assert len(parts(convnn, ConvNN2d)) == 13
    assert all(layer.bias is None for layer in (*parts(convnn, ConvNN2d), *parts(convnn, nn.Conv2d)))


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_vgg11_replaces_all_8_and_pads_the_search_by_one(kernel):
    layers = parts(on_meta(published.vgg11, kernel_size=kernel, candidates=Grid(6)), HybridConvNN2d)
    assert [layer.in_channels for layer in layers] == [3, 64, 128, 256, 256, 512, 512, 512]
    assert {(layer.convnn.candidate_padding, layer.conv.kernel_size) for layer in layers} == {
        ((1, 1), (kernel, kernel))
    }
    assert layers[0].convnn.candidates == Grid(6)
    x = torch.zeros(1, 3, 32, 32, device="meta")
    assert layers[0](x).shape == (1, 64, 32, 32)


def test_vgg11_of_blends():
    model = on_meta(published.vgg11, similarity=Blend(0.5), value_coordinates=True, branch_ratio=0.75)
    layer = parts(model, HybridConvNN2d)[1]
    assert layer.convnn.similarity == Blend(0.5)
    assert layer.convnn.weight.shape == (96, 66, 9)
    assert on_meta(create_model, "vgg11_hybrid_blend_coordinates").convnn_config["similarity"] == "blend:0.5"


def test_vit_tiny_s_attention():
    model = on_meta(published.vit_tiny, k=5, candidates="grid:32", aggregation="standard")
    layer = model.blocks[3].attn
    assert type(layer) is ConvNNAttention
    assert (layer.num_heads, layer.k, layer.candidates) == (1, 5, Grid(32))
    assert (layer.similarity, layer.weighting, layer.aggregation) == ("dot", "softmax", "standard")
    assert layer.qkv.bias is None
    assert layer.proj.bias is None
    assert "pos_embed" in dict(model.named_buffers())
    assert type(on_meta(published.vit_tiny, attention="attention").blocks[0].attn) is timm.layers.Attention


# ------------------------------------------------------------------------------------------------------- same functions
def share_weights(plain: nn.Module, model: nn.Module) -> nn.Module:
    """Give a network made on the meta device the parameters of another, in their order, without a copy."""
    mine, theirs = list(plain.named_parameters()), list(model.parameters())
    assert [tuple(p.shape) for _, p in mine] == [tuple(p.shape) for p in theirs]
    state = {name: value for (name, _), value in zip(mine, theirs, strict=True)}
    plain.load_state_dict(state, strict=False, assign=True)
    return plain


def plain_vgg11() -> nn.Module:
    """The convolution baseline, written down: 3x3 and 1x1 convolutions, batch norm, ReLU, five pools, three layers."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        norm = nn.BatchNorm2d(width, track_running_stats=False)
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 1), norm, nn.ReLU()]
        channels = width
    head = [nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head)


def test_vgg11_s_baseline_is_the_network_written_down():
    model = published.vgg11(branch_ratio=0.0)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            assert part.p == 0.5
            part.eval()
    plain = share_weights(on_meta(plain_vgg11), model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model.pre_logits.eval()
        model.head.eval()
        torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    model.reset_classifier(7)
    assert model.get_classifier().out_features == 7
    assert model.eval().forward_head(torch.zeros(1, 512, 1, 1), pre_logits=True).shape == (1, 4096)


class PlainViT(nn.Module):
    """The attention baseline, written down; parameters in the order of timm's."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            nn.ModuleList([
                nn.LayerNorm(width), nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False),
                nn.LayerNorm(width), nn.Linear(width, 768), nn.Linear(768, width),
            ])
            for _ in range(12)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        place = torch.arange(x.shape[1]).unsqueeze(1)
        angle = place / 10000 ** (torch.arange(0, x.shape[2], 2) / x.shape[2])
        positions = torch.zeros(x.shape[1:])
        positions[:, 0::2], positions[:, 1::2] = angle.sin(), angle.cos()
        x = x + positions
        for norm1, qkv, proj, norm2, up, down in self.blocks:
            q, k, v = qkv(norm1(x)).chunk(3, dim=2)
            x = x + proj((q @ k.transpose(1, 2) / 192**0.5).softmax(2) @ v)
            x = x + down(F.gelu(up(norm2(x))))
        return self.head(x[:, 0])


def test_vit_tiny_s_baseline_is_the_network_written_down():
    model = published.vit_tiny(attention="attention")
    plain = share_weights(on_meta(PlainViT), model)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = plain(x)
        torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-4)
        nearest = published.vit_tiny(attention="knn", k=197)
        nearest.load_state_dict(model.state_dict())
        torch.testing.assert_close(nearest.eval()(x), expected, rtol=1e-4, atol=1e-4)


# Of every block: the tokens after attention and after the MLP, whose hidden layer has 768 channels; ConvNN attention's
# before its output projection too. None before the first block or after the last: tests/accounting counts them all.
DROPOUTS = {
    "attention": {(197, 192): 2, (197, 768): 1},
    "knn": {(197, 192): 2, (197, 768): 1},
    "convnn": {(197, 192): 3, (197, 768): 1},
    "hybrid": {(197, 192): 1, (197, 96): 3, (197, 768): 1},
}


@pytest.mark.parametrize("attention", DROPOUTS)
def test_vit_tiny_s_dropouts(attention):
    model = on_meta(published.vit_tiny, attention=attention).train()
    seen = Counter()
    for part in model.modules():
        if isinstance(part, nn.Dropout) and part.p:
            assert part.p == 0.1
            part.register_forward_hook(lambda _, __, out: seen.update([tuple(out.shape[1:])]))
    model(torch.zeros(1, 3, 224, 224, device="meta"))
    assert seen == {shape: 12 * count for shape, count in DROPOUTS[attention].items()}


def test_what_convnn_attention_aggregated_is_dropped_out_as_published():
    model = create_model("vit_tiny_convnn_all", embed_dim=16, depth=1, image_size=32, k=3)
    layer, x = model.blocks[0].attn, torch.randn(2, 5, 16)
    attended = []
    layer.proj.register_forward_pre_hook(lambda _, inputs: attended.append(inputs[0]))
    layer.eval()(x)
    layer.train()
    torch.manual_seed(1)
    out = layer(x)
    torch.manual_seed(1)
    expected = F.dropout(F.linear(F.dropout(attended[0], 0.1), layer.proj.weight), 0.1)
    torch.testing.assert_close(out, expected)
    assert (out != layer.eval()(x)).any()
    plain = create_model("vit_tiny_convnn_all", embed_dim=16, depth=1, image_size=32, k=3, attn_drop_rate=0.0)
    assert type(plain.blocks[0].attn.proj) is nn.Linear
    assert plain.state_dict().keys() == model.state_dict().keys()


def test_weights_that_nobody_published():
    with pytest.raises(ConvNNError, match=r"pretrained: expected False for 'published_vgg11' .*; leave it out"):
        create_model("vgg11_hybrid_all", pretrained=True)
