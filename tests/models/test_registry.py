import pytest
import torch

from convnn import ConvNNError
from convnn.models import check_model, create_model, input_config, list_models


@pytest.mark.parametrize(
    ("name", "size"), [("small_cnn", 12), ("small_transformer", 32), ("resnet18", 32), ("vit_tiny_patch16_224", 32)]
)
def test_models_of_ours_and_of_timm(name, size):
    model = create_model(name, num_classes=3, in_channels=1, image_size=size).eval()
    assert model(torch.randn(1, 1, size, size)).shape == (1, 3)


def test_what_models_take():
    assert input_config("small_cnn").size == 32
    assert input_config("small_cnn", 12).size == 12
    assert input_config("resnet18").size == 224
    assert input_config("vit_base_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    assert input_config("vit_base.augreg_in21k").mean == (0.5, 0.5, 0.5)
    assert input_config("resnet18", stem="cifar").size == 32
    assert input_config("resnet18", 64, "cifar").size == 64
    assert input_config("vgg11_hybrid_all").size == 32
    assert input_config("convnn_vit_tiny_knn").size == 224


def test_our_models_are_listed_first():
    assert list_models()[:4] == ["small_cnn", "small_resnet", "small_transformer", "small_vit"]
    assert list_models("resnet50_*")[:2] == ["resnet50_conv", "resnet50_convnn_all"]
    assert "resnet50" in list_models()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet18x",
            "model: expected one of convnn's models .* or a model name of timm, got 'resnet18x'; .* 'resnet18'",
        ),
        ("small_cn", r"did you mean 'small_cnn'\?"),
        ("vgg11_hybrid_randm16", r"did you mean 'vgg11_hybrid_random16'\?"),
        ("qqqqq", r"see convnn\.models\.list_models\(\)"),
    ],
)
def test_unknown_models(name, message):
    with pytest.raises(ConvNNError, match=message):
        check_model(name)


def test_ours_have_no_pretrained_weights():
    with pytest.raises(ConvNNError, match="pretrained: expected False for 'small_cnn'"):
        create_model("small_cnn", num_classes=2, pretrained=True)
