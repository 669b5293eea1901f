import pytest
import torch
from torch import nn

from convnn import ConvNNError, HybridConvNN2d
from convnn.models import SmallConvNet, SmallResNet, create_model, small_transformer


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_small_conv_net_takes_any_size(size):
    model = SmallConvNet(in_channels=1, num_classes=4, width=8, depth=3)
    assert model(torch.randn(2, 1, *size)).shape == (2, 4)
    assert len(model.body) == 3


def test_the_small_resnet_has_five_convolutions_to_replace_and_keeps_its_stem():
    model = create_model("small_resnet", layer="hybrid", candidates="random:16")
    assert sum(isinstance(part, HybridConvNN2d) for part in model.modules()) == 5
    kept = [name for name, part in model.stem.named_modules() if isinstance(part, nn.Conv2d)]
    assert kept == ["0", "3"]
    last = create_model("small_resnet", layer="hybrid", pattern="body.2.*")
    assert sum(isinstance(part, HybridConvNN2d) for part in last.modules()) == 2
    x = torch.randn(2, 3, 32, 32)
    assert model.forward_features(x).shape == (2, 192, 4, 4)
    plain = create_model("small_resnet").eval()
    pooled = plain.forward_head(plain.forward_features(x), pre_logits=True)
    torch.testing.assert_close(plain(x), plain.head(pooled) / 8)
    torch.testing.assert_close(pooled, plain.forward_features(x).amax((2, 3)))
    assert create_model("small_resnet", num_classes=0)(x).shape == (2, 192)


def test_small_transformer_sees_patches_and_has_no_class_token():
    model = small_transformer(in_channels=1, image_size=8, patch=2)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert model.patch_embed.grid_size == (4, 4)
    assert model.num_prefix_tokens == 0


def test_equal_seeds_build_equal_models():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(small_transformer())
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SmallConvNet(width=0), "width: expected a whole number of at least 1, got 0"),
        (lambda: SmallResNet(widths=(8, 0)), "widths: expected a whole number of at least 1, got 0"),
        (lambda: SmallResNet(widths=[8]), r"widths: expected two widths of the stem, .*got \(8,\)"),
        (lambda: small_transformer(image_size=9, patch=2), "patch: expected a divisor of image_size = 9, got 2"),
        (lambda: small_transformer(width=30), "width: expected a multiple of 4 .*got 30; use 32"),
    ],
)
def test_bad_sizes(build, message):
    with pytest.raises(ConvNNError, match=message):
        build()
