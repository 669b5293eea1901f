"""The backbones: timm's own models, their stems, and their layers swapped."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from convnn import (
    ConvNN2d,
    ConvNNAttention,
    ConvNNError,
    HybridAttention,
    HybridConvNN2d,
    conversion_report,
    convert,
)
from convnn.models import BACKBONES, config_of, create_model, input_config, swap_layers

# Of a family, the first has every layer; of the others, and of the other stem, a hybrid (the last layer) is enough.
TWINS = ("vgg13", "vgg16", "vgg19", "resnet34", "resnet50", "vit_small", "vit_base")
CHOICES = [
    (name, stem, layer)
    for name, backbone in BACKBONES.items()
    for stem in (None, "cifar")
    if stem is None or backbone.cifar is not None
    for layer in (backbone.layers if stem is None and name not in TWINS else backbone.layers[-1:])
]
# Layers that are replaced: 3x3 (7x7 depthwise in ConvNeXt) convolutions of stride 1 in the blocks, or attention.
REPLACED = {
    "vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16, "resnet18": 13, "resnet34": 29, "resnet50": 13,
    "densenet121": 58, "convnext_tiny": 18, "vit_tiny": 12, "vit_small": 12, "vit_base": 12,
    "published_resnet50": 13, "published_vgg11": 8, "published_vit_tiny": 12, "published_vit_base": 12,
}  # fmt: skip
KINDS = {
    "spatial": (ConvNN2d,),
    "blend": (ConvNN2d,),
    "convnn": (ConvNN2d, ConvNNAttention),
    "hybrid": (HybridConvNN2d, HybridAttention),
    "knn": (ConvNNAttention,),
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(name, **options):
    with torch.device("meta"):
        return create_model(name, **options)


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("name", "stem", "layer"), CHOICES)
def test_every_backbone_stem_and_layer(name, stem, layer):
    model = on_meta(name, num_classes=7, in_channels=2, stem=stem, layer=layer)
    ours = [part for part in model.modules() if type(part) in KINDS.get(layer, ())]
    inside = {id(inner) for part in ours for inner in part.modules() if inner is not part}
    assert sum(id(part) not in inside for part in ours) == (REPLACED[name] if layer in KINDS else 0)
    size = input_config(name, stem=stem).size
    assert model.pretrained_cfg["input_size"] == (2, size, size)
    assert model(torch.zeros(2, 2, size, size, device="meta")).shape == (2, 7)
    assert shapes(on_meta(**config_of(model))) == shapes(model)


@pytest.mark.parametrize("name", [name for name in BACKBONES if not name.startswith("published")])
def test_without_a_layer_it_is_timm_s_model(name):
    with torch.device("meta"):
        theirs = timm.create_model(BACKBONES[name].timm)
    assert shapes(on_meta(name)) == shapes(theirs)


def test_what_depthwise_convolutions_become():
    with torch.device("meta"):
        timm_s = timm.create_model("convnext_tiny", num_classes=7)
    convnn = on_meta("convnext_tiny", num_classes=7, layer="convnn")
    channels = 3 * 96 + 3 * 192 + 9 * 384 + 3 * 768
    assert parameters(convnn) == parameters(timm_s) - (49 - 9) * channels
    first = convnn.stages[0].blocks[0].conv_dw
    assert (first.groups, first.weight.shape, first.candidate_padding, first.query_margin) == (
        96,
        (96, 1, 9),
        (1, 1),
        (1, 1),
    )
    hybrid = on_meta("convnext_tiny", layer="hybrid", branch_ratio=0.25).stages[0].blocks[0].conv_dw
    assert (hybrid.convnn.groups, hybrid.convnn.weight.shape) == (24, (24, 1, 9))
    assert (hybrid.conv.groups, hybrid.conv.weight.shape) == (72, (72, 1, 7, 7))


@pytest.mark.parametrize(("name", "stem"), [("resnet18", "3x3"), ("densenet121", "3x3"), ("convnext_tiny", "2x2")])
def test_stems_for_small_images(name, stem):
    model = on_meta(name, stem="cifar", layer="hybrid")
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    assert type(first) is nn.Conv2d
    assert (first.kernel_size, first.stride) == {"3x3": ((3, 3), (1, 1)), "2x2": ((2, 2), (2, 2))}[stem]
    assert not any(isinstance(part, nn.MaxPool2d) for part in model.modules())
    assert all("stem" not in row.names[0] and row.names[0] != "conv1" for row in conversion_report(model).replaced)
    side = 32 // first.stride[0]
    features = on_meta(name, stem="cifar", features_only=True)
    maps = features(torch.zeros(1, 3, 32, 32, device="meta"))
    assert [32 // tensor.shape[2] for tensor in maps] == features.feature_info.reduction()
    assert maps[0].shape[2] == side


def test_the_vit_s_stem_is_its_patch():
    model = on_meta("vit_tiny", stem="cifar", layer="knn")
    assert (model.patch_embed.patch_size, model.patch_embed.grid_size) == ((4, 4), (8, 8))


# ------------------------------------------------------------------------------------------------------------- weights
@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """timm's own models with weights that are nobody's default, and files of these."""
    folder = tmp_path_factory.mktemp("weights")
    made = {}
    for name, options in {"resnet18": {}, "vit_tiny_patch16_224": {}}.items():
        torch.manual_seed(5)
        model = timm.create_model(name, num_classes=1000, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        torch.save(model.state_dict(), folder / f"{name}.pt")
        made[name] = (model.eval(), str(folder / f"{name}.pt"))
    return made


def test_the_spatial_layer_with_loaded_weights_is_the_original(checkpoints):
    theirs, file = checkpoints["resnet18"]
    x = torch.randn(1, 3, 64, 64)
    for options in ({"checkpoint_path": file}, {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}):
        ours = create_model("resnet18", layer="spatial", **options).eval()
        assert not any(type(part) is nn.Conv2d and part.kernel_size == (3, 3) and part.stride == (1, 1)
                       for part in ours.modules())  # fmt: skip
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
        assert "pretrained" not in config_of(ours)
        assert file not in str(config_of(ours))


def test_attention_to_every_token_with_loaded_weights_is_the_original(checkpoints):
    theirs, file = checkpoints["vit_tiny_patch16_224"]
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for options in ({"layer": "knn", "k": None}, {"layer": "convnn", "k": 197}):  # slot weights start at one
            ours = create_model("vit_tiny", checkpoint_path=file, **options).eval()
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_a_hybrid_keeps_the_loaded_weights_that_fit(checkpoints):
    theirs, file = checkpoints["resnet18"]
    overlay = {"pretrained": True, "pretrained_cfg_overlay": {"file": file}}
    ours = create_model("resnet18", num_classes=5, layer="hybrid", branch_ratio=0.25, **overlay)
    assert torch.equal(ours.layer2[0].conv1.weight, theirs.layer2[0].conv1.weight)
    assert torch.equal(ours.layer1[0].conv1.conv.weight, theirs.layer1[0].conv1.weight[16:])
    assert ours.fc.out_features == 5
    fresh = create_model("resnet18", layer="hybrid", init="random", **overlay)
    assert not torch.equal(fresh.layer1[0].conv1.conv.weight, theirs.layer1[0].conv1.weight[32:])
    small = create_model("resnet18", layer="convnn", stem="cifar", **overlay)
    assert small.conv1.weight.shape == (64, 3, 3, 3)
    assert torch.equal(small.layer2[0].conv1.weight, theirs.layer2[0].conv1.weight)


def test_options_reach_timm_and_the_layers():
    model = on_meta("vit_tiny", layer="hybrid", partner="conv", kernel_size=5, branch_ratio=0.25, drop_rate=0.25,
                    qk_norm=False)  # fmt: skip
    layer = model.blocks[0].attn
    assert (layer.partner, layer.conv.kernel_size, layer.convnn.dim, model.head_drop.p) == ("conv", (5,), 48, 0.25)
    model = on_meta("resnet18", layer="hybrid", convnn_bias=True, aggregation="depthwise_separable", kernel_size=1)
    layer = model.layer1[0].conv1
    assert (layer.conv.bias, layer.conv.kernel_size, layer.convnn.aggregation) == (None, (1, 1), "depthwise_separable")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {"layer": "knn"}, r"layer: expected one of 'conv', .* for resnet50, got 'knn'; .* vit_tiny"),
        ("vit_tiny", {"layer": "blend"}, "layer: expected one of 'attention', .* for vit_tiny, got 'blend'"),
        ("resnet18", {"layer": "hybird"}, "layer: .* did you mean 'hybrid'"),
        ("resnet101", {"layer": "knn"}, "layer: expected one that fits the model, got 'knn'"),
        ("resnet18", {"layer": "convnn", "k": 100, "stem": "cifar"},
         r"k: expected at most 36 .*, got 100; .*\(layer layer4.0.conv2, images of 32 x 32\)"),
        ("resnet18", {"layer": "hybrid", "k": 37, "image_size": 128}, r"k: .*layer4.0.conv2.convnn, images of 128 x"),
        ("vit_tiny", {"layer": "knn", "k": 198}, r"k: expected at most 197 .*blocks.0.attn, images of 224 x 224\)"),
        ("vit_tiny", {"layer": "convnn", "k": 20, "candidates": "random:8"}, "k: expected at most 8 .* got 20"),
        ("small_cnn", {"layer": "convnn", "k": 65, "image_size": 4}, "k: expected at most 36"),
        ("resnet18", {"layer": "convnn", "candidates": "randm:3"}, "candidates: .* did you mean 'random'"),
        ("resnet18", {"layer": "convnn", "candidates": torch.tensor([1])}, "candidates: expected what can be written"),
        ("resnet18", {"layer": "convnn", "similarity": "cosin"}, "similarity: .* did you mean 'cosine'"),
        ("resnet18", {"layer": "spatial", "similarity": "cosine"}, "similarity: expected 'spatial', as layer="),
        ("resnet18", {"layer": "blend", "similarity": "dot"}, r"similarity: expected Blend\(.*as layer='blend' says"),
        ("resnet18", {"stem": "cifr"}, "stem: expected one of 'imagenet', 'cifar', got 'cifr'"),
        ("small_cnn", {"stem": "cifar"}, r"stem: expected 'imagenet' \(small_cnn has one stem only\), got 'cifar'"),
        ("resnet101", {"stem": "cifar"}, r"stem: .*resnet101 has one stem only.*use one of the models vgg11"),
        ("resnet18", {"layre": "hybrid"}, "option: .* or one of timm's for .*, got 'layre'; did you mean 'layer'"),
        ("resnet18", {"layer": "hybrid", "convnn_bais": True}, "got 'convnn_bais'; did you mean 'convnn_bias'"),
        ("resnet18", {"layer": "convnn", "kernel_size": 5}, "option: expected one of .* got 'kernel_size'"),
        ("resnet18", {"convnn_bias": True}, "convnn_bias: expected none without a layer .*got True; give layer="),
        ("resnet18", {"k": 5}, r"k: expected none without a layer \(nothing is swapped\), got 5; give layer="),
        ("resnet18", {"layer": "conv", "bias": True}, r"bias: expected none \(layer='conv' swaps nothing\)"),
        ("small_cnn", {"drop_rate": 0.1}, "option: expected one of .* for small_cnn, got 'drop_rate'"),
        ("resnet18", {"num_classes": -1}, "num_classes: expected a whole number of at least 0, got -1"),
        ("resnet18", {"in_channels": 0}, "in_channels: expected a whole number of at least 1, got 0"),
        ("resnet18", {"image_size": 0}, "image_size: expected a whole number of at least 1, got 0"),
        ("resnet18", {"img_size": (64, 32)}, r"img_size: expected one side .*got \(64, 32\)"),
    ],
)  # fmt: skip
def test_what_does_not_fit(name, options, message):
    with pytest.raises(ConvNNError, match=message):
        create_model(name, **options)


def test_layers_can_be_left_out():
    swapped = swap_layers(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), "convnn", keep=("0",))
    assert [type(part) for part in swapped] == [nn.Conv2d, ConvNN2d]


def test_a_model_converted_since_has_no_configuration():
    with pytest.raises(ConvNNError, match="model: expected one that create_model made and nothing converted since"):
        config_of(convert(create_model("small_cnn")))


def test_without_timm_there_are_the_small_networks():
    code = (
        "import sys\n"
        "sys.modules['timm'] = None\n"
        "import convnn.models as models\n"
        "print(models.list_models(), models.register())\n"
        "print(models.create_model('small_cnn', layer='hybrid').convnn_config['layer'])\n"
        "try:\n"
        "    models.create_model('resnet50')\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names, layer, error = done.stdout.splitlines()
    assert names == "['small_cnn', 'small_resnet', 'small_transformer', 'small_vit'] False"
    assert layer == "hybrid"
    assert error.startswith(
        'timm is not installed, and this needs it; in the source folder of convnn run: pip install ".[vision]"'
    )


@pytest.mark.parametrize("padding", [None, 5, (2, 6)])
def test_a_huge_k_is_refused_before_its_weights_are_made(padding):
    """On shapes alone nothing would tell: the weights of so many slots take gigabytes."""
    with pytest.raises(
        ConvNNError, match=r"k: expected at most \d+, the tokens of a padded image of 32 x 32, got 10000000"
    ):
        create_model("resnet18", layer="convnn", image_size=32, k=10**7, candidate_padding=padding)
