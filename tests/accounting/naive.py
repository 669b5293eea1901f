"""The published algorithm, written plainly: what torch's own profiler and counter say of it is what ours must say.

Only the shapes matter, so any k tokens are as good as the nearest.
"""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from convnn import Blend, Grid, Random


def convnn_map(layer, x):
    """A ConvNN layer on a map: compare all tokens of the padded map, gather, drop the padded queries, multiply."""
    x = F.pixel_unshuffle(x, layer.unshuffle) if layer.unshuffle > 1 else x
    sides = [amount for amount in reversed(layer.candidate_padding) for _ in range(2)]
    padded = F.pad(x, sides)
    batch, _, *grid = padded.shape
    tokens = padded.flatten(2)
    count = tokens.shape[2]
    positions = torch.rand(1, layer.dims, count)
    compared = values = tokens
    if layer.projection:
        compared, values = tokens.transpose(1, 2), layer.value_projection(tokens.transpose(1, 2)).transpose(1, 2)
    if isinstance(layer.similarity, Blend):
        spread = tokens.std(dim=(1, 2), keepdim=True) + 1e-6
        positions_compared = (positions * (1 - layer.similarity.lam)).expand(batch, -1, -1)
        compared = torch.cat([tokens / spread * layer.similarity.lam, positions_compared], 1)
    if layer.value_coordinates:
        values = torch.cat([values, positions.expand(batch, -1, -1)], 1)
    sample = sampled(layer, grid)
    if layer.projection:
        query = layer.query_projection(compared).transpose(1, 2)
        key = compared if sample is None else compared[:, sample]
        key = layer.key_projection(key).transpose(1, 2)
    else:
        query, key = compared, compared if sample is None else compared[:, :, sample]
    gathered, rho = neighbours(layer, query, key, values)
    if layer.weighting != "ones":
        gathered = gathered * rho.unsqueeze(1)
    gathered = gathered.unflatten(2, grid)
    for axis, amount in enumerate(layer.candidate_padding):
        gathered = gathered.narrow(2 + axis, amount, grid[axis] - 2 * amount)
    prime = gathered.flatten(2)
    if layer.weight is None:
        return
    mixed = F.conv1d(prime, layer.weight, stride=layer.k, groups=layer.slot_groups)
    if layer.pointwise is not None:
        F.conv1d(mixed, layer.pointwise.weight.unsqueeze(2))


def attention(layer, x):
    """A ConvNN attention layer: only the candidates are projected to keys; unit weights are dense attention, masked."""
    heads, width = layer.num_heads, layer.attn_dim
    sample = sampled(layer, [x.shape[1]])
    query_weight, key_weight, value_weight = layer.qkv.weight.split(width)
    biases = (None,) * 3 if layer.qkv.bias is None else layer.qkv.bias.split(width)
    sources = (x, x if sample is None else x[:, sample], x)
    query, key, value = (
        F.linear(source.contiguous(), weight, bias).unflatten(2, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        for source, weight, bias in zip(sources, (query_weight, key_weight, value_weight), biases, strict=True)
    )
    if layer.weight is None:
        scores = torch.bmm(query.transpose(1, 2), key)
        scores = scores if layer.k is None else scores * layer.head_dim**-0.5
        out = torch.bmm(scores.softmax(2), value.transpose(1, 2)).transpose(1, 2)
    else:
        gathered, rho = neighbours(layer, query, key, value)
        prime = (gathered * rho.unsqueeze(1)).flatten(2)
        out = F.conv1d(prime, layer.weight, stride=layer.k, groups=layer.weight.shape[0] // layer.weight.shape[1])
        if layer.pointwise is not None:
            out = F.conv1d(out, layer.pointwise.weight.unsqueeze(2))
    layer.proj(out.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2).contiguous())


def sampled(layer, grid):
    """The candidates' positions, or None for all."""
    tokens = torch.Size(grid).numel()
    if isinstance(layer.candidates, Random) and layer.candidates.r <= tokens:
        return torch.randperm(tokens)[: layer.candidates.r]
    if isinstance(layer.candidates, Grid) and layer.candidates.g <= min(grid):
        axes = [torch.linspace(0, size - 1, layer.candidates.g).long() for size in grid]
        flat, *others = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
        for other, size in zip(others, grid[1:], strict=True):
            flat = flat * size + other
        return flat
    return None


def neighbours(layer, query, key, value):
    """The k values of every query, ``(B, C, N, k)``, and their similarities ``(B, N, k)``."""
    if layer.similarity == "euclidean":
        norms = query.pow(2).sum(1).unsqueeze(2) + key.pow(2).sum(1).unsqueeze(1)
        scores = norms - 2 * torch.bmm(query.transpose(1, 2), key)
    else:
        scores = torch.bmm(query.transpose(1, 2), key)
    rho, index = scores[..., : layer.k].sort(2)
    rho, index = (F.pad(part, (0, layer.k - part.shape[2])) for part in (rho, index))
    flat = index.flatten(1).unsqueeze(1).expand(-1, value.shape[1], -1)
    return value.gather(2, flat).unflatten(2, (-1, layer.k)), rho


def products(run, *inputs):
    """What torch's counter says of a call: FLOPs by operator, one for every convolution of as many axes."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run(*inputs)
    return Counter({operator.__name__: flops for operator, flops in counter.get_flop_counts()["Global"].items()})


def printed(run, *inputs):
    """What torch's profiler prints of a call: FLOPs by operator, without those that it passes over."""
    from torch.profiler import ProfilerActivity, profile

    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True, with_flops=True) as seen:
        run(*inputs)
    return Counter({event.key.removeprefix("aten::"): event.flops for event in seen.key_averages() if event.flops})
