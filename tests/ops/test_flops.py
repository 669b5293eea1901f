"""torch's own counter of FLOPs knows the custom operators, forward and backward."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convnn import ConvNN2d, ConvNNAttention, Grid, HybridConvNN2d, Random, knn_aggregate
from convnn.accounting import count_flops

# Samples, tokens, channels in and out, neighbours.
B, N, C_IN, C_OUT, K = 2, 48, 6, 10, 5
GRID = (6, 8)
SEARCH, AGGREGATION = 2 * B * N * N * C_IN, 2 * B * N * K * C_IN * C_OUT


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_a_plain_counter_counts_the_search_and_the_aggregation():
    layer, x = ConvNN2d(C_IN, C_OUT, K), torch.randn(B, C_IN, *GRID)
    assert counted(lambda: layer(x)) == SEARCH + AGGREGATION
    assert counted(lambda: layer(x)) == count_flops(layer, x)


def test_and_the_backward_pass():
    """The gradients of values and matrices take a product each; nothing is searched twice."""
    layer, x = ConvNN2d(C_IN, C_OUT, K), torch.randn(B, C_IN, *GRID, requires_grad=True)
    assert counted(lambda: layer(x).sum().backward()) == SEARCH + 3 * AGGREGATION


@pytest.mark.parametrize(("candidates", "r"), [(Random(9), 9), (Grid(3), 9), (torch.arange(0, 48, 4), 12)])
@pytest.mark.parametrize("of_input", [False, True])
def test_few_candidates(candidates, r, of_input):
    layer = ConvNN2d(C_IN, C_OUT, K, candidates=candidates)
    x = torch.randn(B, C_IN, *GRID, requires_grad=of_input)
    aggregation = 2 * B * (N + r * (K - 1)) * C_IN * C_OUT
    passes = 3 if of_input else 2
    assert counted(lambda: layer(x).sum().backward()) == 2 * B * N * r * C_IN + passes * aggregation


def test_the_similarities_that_weight_the_neighbours():
    """k-NN attention: the search, the k similarities once more, and the weighted sum; backward each of them twice."""
    query, key, value = (torch.randn(B, N, C_IN, requires_grad=True) for _ in range(3))
    options = {"k": K, "similarity": "dot", "weighting": "softmax"}
    pairs = 2 * B * N * K * C_IN
    assert counted(lambda: knn_aggregate(query, key, value, **options)) == SEARCH + 2 * pairs
    assert counted(lambda: knn_aggregate(query, key, value, **options).sum().backward()) == SEARCH + 6 * pairs


def test_what_is_a_torch_layer_counts_as_that_layer():
    conv, x = nn.Conv2d(C_IN, C_OUT, 3, padding=1, stride=2), torch.randn(B, C_IN, *GRID, requires_grad=True)
    spatial = ConvNN2d.from_conv(conv)
    assert counted(lambda: spatial(x).sum().backward()) == counted(lambda: conv(x).sum().backward())
    hybrid = HybridConvNN2d(C_IN, C_OUT, 3, k=K)
    parts = [lambda: hybrid.convnn(x), lambda: hybrid.conv(x), lambda: hybrid.mix(torch.randn(B, C_OUT, *GRID))]
    assert counted(lambda: hybrid(x)) == sum(counted(part) for part in parts)
    attention, tokens = ConvNNAttention(8, 2, k=None, aggregation="sum"), torch.randn(B, N, 8)
    assert counted(lambda: attention(tokens)) == 2 * B * N * 8 * (3 * 8 + 8) + 2 * 2 * B * N * N * 8


def test_a_counter_made_before_convnn_is_first_used_counts_it():
    code = (
        "import convnn, torch\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "counter, x = FlopCounterMode(display=False), torch.randn(1, 7, 3)\n"
        "convnn.knn_search(x, x, 2, similarity='dot')\n"
        "with counter:\n"
        "    convnn.knn_search(x, x, 2, similarity='dot')\n"
        "print(counter.get_total_flops())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == 2 * 7 * 7 * 3 + 2 * 7 * 2 * 3
