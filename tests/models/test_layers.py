import pytest
import torch
from torch import nn

from convnn import ConvNN2d, ConvNNAttention, ConvNNError, Grid, HybridConvNN2d, Random, Window, conversion_report
from convnn.models import (
    LAYERS,
    SmallConvNet,
    config_of,
    create_model,
    parse_candidates,
    small_transformer,
    swap_layers,
)


def layers_of(model, kind):
    return [module for module in model.modules() if type(module) is kind]


def test_layers_that_swap_nothing_return_the_model():
    model = SmallConvNet()
    assert swap_layers(model, "conv") is model
    assert swap_layers(model, "attention") is model


@pytest.mark.parametrize("layer", ["spatial", "blend", "convnn"])
def test_convolutions_become_convnn(layer):
    model = SmallConvNet(in_channels=1, width=8)
    swapped = swap_layers(model, layer)
    assert len(layers_of(swapped, ConvNN2d)) == 3
    assert len(layers_of(model, nn.Conv2d)) == 3
    assert swapped(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_spatial_is_the_same_function():
    model = SmallConvNet(in_channels=1, width=8).eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(swap_layers(model, "spatial")(x), model(x))


def test_options_arrive():
    hybrid = swap_layers(SmallConvNet(width=8), "hybrid", k=5, branch_ratio=0.25)
    layer = layers_of(hybrid, HybridConvNN2d)[-1]
    assert (layer.convnn.k, layer.convnn.out_channels) == (5, 2)
    assert layers_of(swap_layers(small_transformer(), "knn", k=4), ConvNNAttention)[0].k == 4


def test_knn_attention_over_all_tokens_is_attention():
    model = small_transformer().eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(swap_layers(model, "knn", k=16)(x), model(x), atol=1e-5, rtol=1e-5)


def test_init_can_keep_the_attention_s_weights():
    model = small_transformer()
    kept, drawn = (swap_layers(model, "convnn", init=init) for init in ("from_original", "default"))
    original = model.blocks[0].attn.qkv.weight
    assert torch.equal(kept.blocks[0].attn.qkv.weight, original)
    assert not torch.equal(drawn.blocks[0].attn.qkv.weight, original)


def test_strided_and_pointwise_convolutions_stay():
    swapped = swap_layers(create_model("resnet18", num_classes=2), "blend")
    assert all(max(conv.stride) > 1 or max(conv.kernel_size) == 1 for conv in layers_of(swapped, nn.Conv2d))


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (
            SmallConvNet(),
            "knn",
            "layer: expected one that fits the model, got 'knn', but a SmallConvNet has no attention",
        ),
        (small_transformer(), "blend", "a VisionTransformer has no convolutions .*use one of 'knn'"),
        (nn.Linear(2, 2), "convnn", "but a Linear has no layer to swap; use another model"),
        (SmallConvNet(), "convn", r"layer: expected one of 'conv', .* got 'convn'; did you mean 'conv(nn)?'\?"),
    ],
)
def test_layers_that_do_not_fit(model, layer, message):
    with pytest.raises(ConvNNError, match=message):
        swap_layers(model, layer)


def test_unknown_init():
    with pytest.raises(ConvNNError, match="init: expected one of 'default', 'random', 'from_original', got 'orignal'"):
        swap_layers(SmallConvNet(), "convnn", init="orignal")


def test_every_layer_says_what_it_is():
    assert all(swap.text for swap in LAYERS.values())


def test_candidates_are_read_from_words():
    assert parse_candidates("all") == "all"
    assert parse_candidates("grid:5") == Grid(5)
    assert parse_candidates("window:7") == Window(7)
    swapped = swap_layers(SmallConvNet(width=8), "hybrid", candidates=parse_candidates("random:12"))
    assert layers_of(swapped, ConvNN2d)[0].candidates == Random(12)


@pytest.mark.parametrize(("pattern", "count"), [("layer4.*", 3), (["layer4.*", "layer3.*"], 6), (None, 13)])
def test_patterns_choose_which_layers_are_swapped(pattern, count):
    given = {} if pattern is None else {"pattern": pattern}
    model = create_model("resnet18", num_classes=10, layer="hybrid", stem="cifar", **given)
    again = create_model(**config_of(model))
    assert len(conversion_report(model).replaced) == len(conversion_report(again).replaced) == count


def test_a_pattern_that_names_no_layer_is_refused():
    with pytest.raises(ConvNNError, match=r"^pattern: expected a choice of convolutions"):
        create_model("resnet18", layer="hybrid", pattern="layer9.*")


def test_a_layer_that_swaps_nothing_has_no_pattern():
    model = create_model("resnet18", layer="conv", pattern="layer4.*")
    assert "pattern" not in config_of(model)
