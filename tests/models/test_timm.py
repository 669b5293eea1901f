"""Our models in timm's registry, and timm's interface on our models."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from torch import nn

import convnn.models
from convnn import HybridConvNN2d
from convnn.models import BACKBONES, CONFIGURATIONS, MODELS, config_of, create_model, list_models


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_every_name_is_registered():
    expected = {f"convnn_{name}" for name in (*MODELS, *BACKBONES, *CONFIGURATIONS)}
    assert set(timm.list_models("convnn_*")) == expected
    assert convnn.models.register()  # a second time changes nothing, and warns of nothing
    assert not [name for name in list_models() if name.startswith("convnn_")]
    assert len(list_models()) == len(set(list_models()))


@pytest.mark.parametrize("name", ["vgg11_hybrid_random144", "resnet50_convnn_all", "vit_tiny_knn"])
def test_named_configurations_are_the_same_through_timm(name):
    with torch.device("meta"):
        ours = create_model(name)
    theirs = on_meta(f"convnn_{name}")
    assert shapes(ours) == shapes(theirs)
    assert config_of(ours) == config_of(theirs)
    cfg = timm.get_pretrained_cfg(f"convnn_{name}")
    assert cfg.architecture == theirs.pretrained_cfg["architecture"] == f"convnn_{name}"
    assert not cfg.has_weights
    assert cfg.num_classes == ours.num_classes
    data = timm.data.resolve_model_data_config(theirs)
    assert data["input_size"] == cfg.input_size
    assert data["mean"] == cfg.mean


def test_timm_s_keywords():
    model = on_meta("convnn_resnet50", layer="hybrid", k=5, candidates="random:32", num_classes=3, in_chans=1,
                    drop_rate=0.25, global_pool="max")  # fmt: skip
    assert (model.num_classes, model.drop_rate, model.conv1.in_channels) == (3, 0.25, 1)
    assert config_of(model) == {
        "name": "resnet50", "num_classes": 3, "in_channels": 1, "layer": "hybrid", "k": 5, "branch_ratio": 0.5,
        "candidates": "random:32", "drop_rate": 0.25, "global_pool": "max",
    }  # fmt: skip
    assert shapes(on_meta("convnn_resnet50", **{k: v for k, v in config_of(model).items() if k != "name"})) == shapes(
        model
    )
    vit = on_meta("convnn_vit_tiny", layer="convnn", img_size=64)
    assert vit.patch_embed.img_size == (64, 64)
    assert config_of(vit)["image_size"] == 64
    assert timm.get_pretrained_cfg("convnn_resnet50").hf_hub_id.startswith("timm/resnet50")


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121", "convnext_tiny", "vit_tiny"])
def test_timm_s_interface(name):
    layer = "convnn" if name == "vit_tiny" else "hybrid"
    model = on_meta(f"convnn_{name}", layer=layer, num_classes=5).eval()
    with torch.device("meta"):
        theirs = timm.create_model(BACKBONES[name].timm, num_classes=5)
    size = model.pretrained_cfg["input_size"][1]
    x = torch.zeros(2, 3, size, size, device="meta")
    features = model.forward_features(x)
    assert features.shape == theirs.forward_features(x).shape
    assert model.forward_head(features).shape == (2, 5)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.get_classifier().out_features == 5
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)
    with torch.device("meta"):
        assert shapes(create_model(**config_of(model))) == shapes(model)
        model.reset_classifier(0, "" if name == "vit_tiny" else "max")
        again = create_model(**config_of(model))
    assert again(x).shape == model(x).shape
    assert config_of(again) == config_of(model)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "densenet121", "convnext_tiny", "vit_tiny", "published_vgg11"])
def test_features_only(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every layer is swapped, or convert says so
        model = on_meta(f"convnn_{name}", layer="hybrid", features_only=True)
    with torch.device("meta"):
        theirs = timm.create_model(BACKBONES[name].timm, features_only=True)
        size = 224
        x = torch.zeros(1, 3, size, size)
        ours, expected = model(x), theirs(x)
        again = create_model(**config_of(model))
    assert [y.shape for y in ours] == [y.shape for y in expected]
    assert shapes(again) == shapes(model)


def test_checkpoints_of_the_finished_model(tmp_path):
    options = {"layer": "hybrid", "k": 4, "num_classes": 3}
    model = timm.create_model("convnn_resnet18", **options)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    same = timm.create_model("convnn_resnet18", checkpoint_path=tmp_path / "model.pt", **options)
    assert torch.equal(same.layer1[0].conv1.mix.weight, model.layer1[0].conv1.mix.weight)
    timm.models.save_for_hf(model, tmp_path / "saved")
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True)
    assert config_of(again) == {**config_of(model), "global_pool": "avg"}  # timm writes the pooling down
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again.eval()(x), model.eval()(x))


def test_small_networks_have_the_interface():
    model = timm.create_model("convnn_small_cnn", layer="hybrid", num_classes=3, in_chans=1)
    assert sum(isinstance(part, HybridConvNN2d) for part in model.modules()) == 3
    features = model.forward_features(torch.randn(2, 1, 8, 8))
    assert features.shape == (2, 32, 8, 8)
    assert model.forward_head(features, pre_logits=True).shape == (2, 32)
    model.reset_classifier(7)
    assert isinstance(model.get_classifier(), nn.Linear)
    assert config_of(model)["num_classes"] == 7
    model.reset_classifier(0)
    assert create_model(**config_of(model))(torch.randn(2, 1, 8, 8)).shape == (2, 32)
    assert model.pretrained_cfg["architecture"] == "convnn_small_cnn"
