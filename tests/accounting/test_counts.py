import pytest
import timm
import torch
from torch import nn

from convnn import ConvNN2d, ConvNNAttention, ConvNNError, Random
from convnn.accounting import count_flops, count_parameters, evaluating


def test_parameters_count_shared_ones_once_and_frozen_ones_on_request():
    layer = nn.Linear(3, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert count_parameters(model) == 16
    layer.bias.requires_grad_(False)
    assert count_parameters(model) == 16
    assert count_parameters(model, trainable=True) == 12


def test_flops_of_a_convolution_by_hand():
    assert count_flops(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 6, 5)) == 2 * 8 * 3 * 9 * 30


def test_flops_grow_with_the_batch():
    layer = ConvNN2d(4, 4, k=3)
    one, two = (count_flops(layer, torch.randn(batch, 4, 6, 6)) for batch in (1, 2))
    assert two == 2 * one


def test_flops_of_convnn_are_the_search_and_the_aggregation():
    search, aggregation = 2 * 36 * 36 * 4, 2 * 36 * 3 * 4 * 4
    assert count_flops(ConvNN2d(4, 4, k=3, impl="dense"), torch.randn(1, 4, 6, 6)) == search + aggregation


def test_flops_of_the_bounded_implementation_are_the_same_products():
    x = torch.randn(1, 4, 6, 6)
    assert count_flops(ConvNN2d(4, 4, k=3, impl="tiled"), x) == count_flops(ConvNN2d(4, 4, k=3, impl="dense"), x)


def test_sampled_candidates_are_multiplied_by_the_slot_matrices_once():
    search, own_slot, other_slots = 2 * 36 * 5 * 4, 2 * 36 * 4 * 4, 2 * 5 * 2 * 4 * 4
    layer = ConvNN2d(4, 4, k=3, candidates=Random(5))
    assert count_flops(layer, torch.randn(1, 4, 6, 6)) == search + own_slot + other_slots


def test_flops_of_weighted_neighbours_count_the_weights():
    x, pairs = torch.randn(1, 7, 6), 2 * 2 * 7 * 3 * 3
    attention = ConvNNAttention(6, 2, k=3, aggregation="sum")
    projections, search = 2 * 7 * 6 * 24, 2 * 2 * 7 * 7 * 3
    assert count_flops(attention, x) == projections + search + 2 * pairs


def test_spatial_convnn_costs_what_its_convolution_costs():
    conv = nn.Conv2d(4, 8, 3, padding=1)
    x = torch.randn(1, 4, 6, 6)
    assert count_flops(ConvNN2d.from_conv(conv), x) == count_flops(conv, x)


def test_multihead_attention_is_counted_in_eval_mode_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    projections, products = 2 * 5 * 8 * 32, 2 * 2 * 5 * 5 * 8
    assert count_flops(Block().eval(), torch.randn(1, 5, 8)) == projections + products
    assert torch.backends.mha.get_fastpath_enabled()


def test_flops_of_a_known_model():
    assert count_flops(timm.create_model("resnet18"), torch.zeros(1, 3, 224, 224)) == pytest.approx(3.628e9, rel=1e-3)


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Conv2d(2, 2, 1))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_flops(model, torch.randn(4, 2, 3, 3))
    assert [module.training for module in model] == [True, False, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError), evaluating(model):
        model("not a tensor")
    assert model.training


def test_no_input_is_refused():
    with pytest.raises(ConvNNError, match=r"^inputs: expected the tensors that the model takes, got none; pass"):
        count_flops(nn.Linear(2, 2))
