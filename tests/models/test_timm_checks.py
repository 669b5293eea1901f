"""What timm asks of each of its models, asked of ours: the smallest member of every family, its layers swapped.

Every check holds for timm's own model of the family as well.
"""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from timm.models import FeatureInfo, VisionTransformer, get_model_traits, group_parameters
from timm.models._features_fx import GraphExtractNet, get_graph_node_names
from timm.optim import param_groups_layer_decay
from torch import nn

from convnn import ConvNNAttention, ConvNNError, conversion_report
from convnn.models import config_of, create_model

SIZE = 32
SMALL = {
    "vgg11": {"mlp_ratio": 1 / 64},
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)},
    "densenet121": {"block_config": (1, 1, 1, 1), "growth_rate": 8, "stem": "cifar"},
    "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "stem": "cifar"},
    "vit_tiny": {"embed_dim": 16, "depth": 4, "num_heads": 2, "img_size": SIZE, "patch_size": 8},
}
CASES = [*((name, "hybrid") for name in SMALL), ("vit_tiny", "convnn")]
every_case = pytest.mark.parametrize(("name", "layer"), CASES)


def make(name, layer, **options):
    return timm.create_model(f"convnn_{name}", layer=layer, k=3, **{**SMALL.get(name, {}), **options})


def images(channels=3):
    return torch.randn(2, channels, SIZE, SIZE)


def names_in(cfg, key):
    return (cfg[key],) if isinstance(cfg[key], str) else tuple(cfg[key])


# ------------------------------------------------------------------------------------------------- forward and backward
@every_case
def test_every_parameter_learns_with_activation_checkpointing_too(name, layer):
    model, x = make(name, layer, num_classes=42).train(), images()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0  # checkpointing runs a block twice
    again = copy.deepcopy(model)
    if name != "vgg11":  # which cannot
        again.set_grad_checkpointing()
    for one in (model, again):
        logits = one(x)
        assert logits.shape == (2, 42)
        logits.square().mean().backward()
    for (parameter_name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert one.grad is not None, parameter_name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


@every_case
def test_graphs_of_the_model(name, layer):
    model, x = make(name, layer, num_classes=42).eval(), images()
    trained, evaluated = get_graph_node_names(model)
    graph = GraphExtractNet(model, [evaluated[-1]]).eval()
    torch.testing.assert_close(graph(x), model(x), rtol=0, atol=0)
    graph = GraphExtractNet(model.train(), [trained[-1]]).train()
    graph(x).mean().backward()
    assert all(parameter.grad is not None for parameter in graph.parameters())


# ------------------------------------------------------------------------------------------------------------ the heads
@every_case
def test_classifiers_and_pooling(name, layer):
    model, x = make(name, layer, num_classes=3).eval(), images()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    torch.testing.assert_close(model.forward_head(features), model(x))
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    model.reset_classifier(0, "")
    assert model(x).dim() == features.dim()
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)
    assert model.get_classifier().out_features == 5
    assert make(name, layer, num_classes=0).eval()(x).shape == pooled.shape
    unpooled = make(name, layer, num_classes=0, global_pool="").eval()(x)
    assert unpooled.dim() == features.dim()
    if name != "vgg11":  # whose hidden layers come between
        assert unpooled.shape == features.shape


# --------------------------------------------------------------------------------------------------------- feature maps
WRAPPERS = [(name, None) for name in SMALL] + [("resnet18", kind) for kind in ("getter", "fx", "hook", "dict")]


@pytest.mark.parametrize(("name", "wrapper"), [*WRAPPERS, ("vgg11", "fx")])
def test_features(name, wrapper):
    chosen = {} if wrapper is None else {"feature_cls": wrapper}
    model = make(name, "hybrid", features_only=True, **chosen).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    maps = model(images())
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert [y.shape[1] for y in maps] == channels
    assert all(y.shape[2] <= math.ceil(SIZE / reduction) for y, reduction in zip(maps, reductions, strict=True))
    assert len(make(name, "hybrid", features_only=True, out_indices=(0, 1), **chosen).eval()(images())) == 2


def test_a_graph_of_features_is_made_of_swapped_attention():
    model = make("vit_tiny", "convnn", features_only=True, feature_cls="fx").eval()
    assert sum(isinstance(part, ConvNNAttention) for part in model.modules()) == 4
    assert len(conversion_report(model).replaced) == 4
    tokens = model(images())  # timm's graphs of transformers return tokens
    assert [tuple(y.shape) for y in tokens] == [(2, 17, 16)] * 3
    assert [y.shape for y in create_model(**config_of(model))(images())] == [y.shape for y in tokens]


@every_case
def test_intermediates(name, layer):
    model, x = make(name, layer).eval(), images()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    final, maps = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    assert [y.shape[1] for y in maps] == info.channels()
    assert [SIZE // y.shape[2] for y in maps] == info.reduction()
    if isinstance(model, VisionTransformer):
        rows = model.forward_intermediates(x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
        assert rows[0].shape == (2, (SIZE // 8) ** 2, 16)
    taken = model.prune_intermediate_layers(indices=[1], prune_head=True)
    pruned = model.forward_intermediates(x, indices=taken, intermediates_only=True)
    torch.testing.assert_close(pruned[-1], maps[1])


@every_case
def test_groups_of_parameters(name, layer):
    model = make(name, layer)
    count = len(list(model.parameters()))
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert sum(map(len, groups.values())) == count
    undecayed = getattr(model, "no_weight_decay", set)()
    assert {found for found in undecayed if getattr(model, found, None) is not None} <= dict(
        model.named_parameters()
    ).keys()
    assert sum(len(group["params"]) for group in param_groups_layer_decay(model, 0.05)) == count


# -------------------------------------------------------------------------------------------------- what timm is told
def check_configuration(model):
    """The names are those of real layers, and the last map is as large as is said."""
    cfg, state = model.pretrained_cfg, model.state_dict()
    channels, *size = cfg["input_size"]
    assert cfg is model.default_cfg
    for first in names_in(cfg, "first_conv"):
        assert state[f"{first}.weight"].shape[1] - channels in (0, 2), first  # 2: where coordinates join the values
    assert cfg["num_classes"] == model.num_classes
    traits = get_model_traits(model).get("first_conv", cfg["first_conv"])
    assert traits == cfg["first_conv"]
    assert state[f"{cfg['classifier']}.weight"].shape[0] == model.num_classes
    features = model.eval().forward_features(torch.zeros(1, channels, *size, device="meta"))
    assert cfg.get("pool_size") == (tuple(features.shape[2:]) if features.dim() == 4 else None)
    resized = size[0] != 224 and "test_input_size" in cfg
    assert not resized


SIZES = [{}, {"img_size": 96, "in_chans": 1}, {"stem": "cifar"}]
PARTS = ("layers", "channels", "block_config", "growth_rate", "depths", "dims", "embed_dim", "depth", "num_heads")


@pytest.mark.parametrize("options", SIZES, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_configurations_of_timm(name, options):
    small = {part: value for part, value in SMALL.get(name, {}).items() if part in PARTS}
    with torch.device("meta"):
        model = timm.create_model(f"convnn_{name}", layer="hybrid", k=3, **small, **options)
    check_configuration(model)
    assert model.pretrained_cfg["input_size"][0] == options.get("in_chans", 3)


@pytest.mark.parametrize(
    "name",
    ["vgg11", "published_vgg11", "vgg11_conv", "vgg11_convnn_all", "vgg11_hybrid_blend_coordinates",
     "resnet50_hybrid_all", "vit_tiny_convnn_all", "small_cnn", "small_resnet", "small_transformer",
     "small_vit"],
)  # fmt: skip
def test_timm_s_registry_says_the_same(name):
    with torch.device("meta"):
        model = timm.create_model(f"convnn_{name}")
    check_configuration(model)
    registered = timm.get_pretrained_cfg(f"convnn_{name}").to_dict()
    for key in (
        "num_classes",
        "input_size",
        "pool_size",
        "first_conv",
        "classifier",
        "mean",
        "std",
        "fixed_input_size",
    ):
        assert registered[key] == model.pretrained_cfg.get(key), key


def test_a_configuration_of_a_model_that_cannot_be_sized():
    """Forty neighbours are more than the last map of small images has: that shows when it runs, not here."""
    with torch.device("meta"):
        model = create_model("resnet18", layer="convnn", k=40)
    assert model.pretrained_cfg["pool_size"] == (7, 7)
    with torch.device("meta"):
        backbone = create_model("resnet18", layer="hybrid", features_only=True, image_size=64)
    assert backbone.pretrained_cfg["pool_size"] is None  # of the classifier's, which it has not


# ---------------------------------------------------------------------------------------------------- saved, and loaded
SAVED = [
    *((name, "hybrid") for name in ("resnet18", "vgg11", "small_cnn", "small_resnet")),
    ("vgg11", "convnn"),
    ("vit_tiny", "knn"),
]


@pytest.fixture(scope="module", params=SAVED, ids=lambda case: "-".join(case))
def saved(request, tmp_path_factory):
    name, layer = request.param
    model = make(name, layer, num_classes=3).eval()
    timm.models.save_for_hf(model, folder := tmp_path_factory.mktemp("saved"))
    return model, f"local-dir:{folder}"


def test_saved_models_take_other_channels_and_classes(saved):
    model, source = saved
    x = images()
    torch.testing.assert_close(timm.create_model(source, pretrained=True).eval()(x), model(x), rtol=0, atol=0)
    grey = timm.create_model(source, pretrained=True, in_chans=1, num_classes=5).eval()
    assert grey(x[:, :1]).shape == (2, 5)
    four = timm.create_model(source, pretrained=True, in_chans=4).eval()
    before, weights, more = model.state_dict(), grey.state_dict(), four.state_dict()
    first = names_in(model.pretrained_cfg, "first_conv")
    for name, value in weights.items():
        if name.startswith(model.pretrained_cfg["classifier"] + "."):
            continue
        expected = before[name]
        if name in [f"{layer}.weight" for layer in first]:
            # One grey image stands for three equal channels; of more, the sum of the weights stays.
            torch.testing.assert_close(more[name], expected[:, [0, 1, 2, 0]] * 3 / 4)
            expected = expected.sum(1, keepdim=True)
        torch.testing.assert_close(value, expected)


def test_saved_models_are_backbones_too(saved):
    model, source = saved
    x = images()
    if "small" in model.pretrained_cfg["architecture"]:
        with pytest.raises(ConvNNError, match=r"option: .*for small_\w+, got 'features_only'"):
            timm.create_model(source, pretrained=True, features_only=True)
        return
    features = timm.create_model(source, pretrained=True, features_only=True, out_indices=(1, 2)).eval()
    expected = model.forward_intermediates(x, indices=[1, 2], intermediates_only=True)
    for ours, theirs in zip(features(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_coordinates_keep_their_weights(tmp_path):
    options = {"layer": "convnn", "similarity": "blend:0.5", "value_coordinates": True}
    model = timm.create_model("convnn_small_cnn", **options)
    timm.models.save_for_hf(model, tmp_path)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)
    before, after = model.stem[0].weight, grey.stem[0].weight
    torch.testing.assert_close(after, torch.cat([before[:, :3].sum(1, keepdim=True), before[:, 3:]], 1))


def test_projections_of_the_images_take_no_other_channels(tmp_path):
    options = {"layer": "convnn", "projection": True, "weighting": "softmax"}
    timm.models.save_for_hf(timm.create_model("convnn_small_cnn", **options), tmp_path)
    message = (
        r"in_chans: expected 3, as the saved stem.0.query_projection.weight of shape \(3, 3\), got 1; use in_chans=3"
    )
    with pytest.raises(ConvNNError, match=message):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1)


def test_the_small_network_s_pooling():
    model = timm.create_model("convnn_small_cnn", num_classes=0, global_pool="")
    assert model(images()).shape == (2, 32, SIZE, SIZE)
    model.reset_classifier(4, "avg")
    assert model(images()).shape == (2, 4)
    with pytest.raises(ConvNNError, match="global_pool: expected 'avg' where there are classes, got ''"):
        model.reset_classifier(4, "")
