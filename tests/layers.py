"""One registry of what tests run through: layers with inputs for them, similarities and candidates, each by its name.

Outputs and gradients of a layer or a function are those of ``convnn.testing``: ``layer_with_gradients``,
``function_with_gradients``, and ``with_gradients`` for what is neither.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convnn import (
    Blend,
    ConvNN1d,
    ConvNN2d,
    ConvNN3d,
    ConvNNAttention,
    ConvNNError,
    ConvNNMultiheadAttention,
    Grid,
    HybridAttention,
    HybridConvNN2d,
    Random,
    Window,
    explain_choice,
)
from convnn.impl import choose


def runs_anything(impl: str) -> bool:
    """Return whether an implementation can run a plain search and gather, of no limit case, in float64."""
    x = torch.zeros(1, 4, 2, dtype=torch.float64)
    try:
        explain_choice(x, x, x, k=2, impl=impl)
    except ConvNNError:
        return False
    return True


SIMILARITIES: dict[str, Any] = {
    **{name: name for name in ("cosine", "dot", "sqeuclidean", "euclidean", "spatial")},
    **{f"blend {feature}": Blend(0.6, feature) for feature in ("cosine", "sqeuclidean", "euclidean")},
}
# By name, those that run any search and any gather, one that is added too; the others are for some problems only.
IMPLEMENTATIONS = tuple(each.name for each in choose.IMPLEMENTATIONS if runs_anything(each.name))
FEATURES = ("cosine", "dot", "sqeuclidean", "euclidean")
WEIGHTINGS = ("ones", "identity", "softmax")
# For maps of two axes; all but the dilated window for other maps too. At least 8 tokens, and up to 3 neighbours.
CANDIDATES: dict[str, Any] = {
    "all": "all",
    "random": Random(7, seed=3),
    "grid": Grid(3),
    "window": Window(3),
    "dilated window": Window((3, 5), (1, 2)),
    "shifted window": Window(3, border="shift"),
    "positions": torch.tensor([7, 0, 3, 2, 5, 1]),
}

# Every layer with its options left open: 4 channels of a map, or 8 of tokens in 2 heads.
KINDS: dict[str, Callable[..., Any]] = {
    "ConvNN": partial(ConvNN2d, 4, 4, k=3),
    "hybrid": partial(HybridConvNN2d, 4, 8, k=3),
    "attention": partial(ConvNNAttention, 8, 2, k=3),
    "hybrid attention": partial(HybridAttention, 8, 2, k=3),
    "multihead": partial(ConvNNMultiheadAttention, 8, 2, k=3, batch_first=True),
}

# Layers of every kind, one with each option that decides what runs.
MAPS: dict[str, Callable[[], nn.Module]] = {
    "all": lambda: ConvNN2d(4, 6, 5, candidate_padding=1),
    "random": lambda: ConvNN2d(4, 6, 5, candidate_padding=1, candidates=Random(7)),
    "grid": lambda: ConvNN2d(4, 6, 3, candidates=Grid(3), stride=2),
    "weighted grid": lambda: ConvNN2d(4, 6, 3, candidates=Grid(3), weighting="softmax", groups=2),
    "window": lambda: ConvNN2d(4, 6, 4, candidate_padding=2, candidates=Window(5)),
    "weighted window": lambda: ConvNN2d(4, 6, 3, candidates=Window(3), similarity="sqeuclidean", weighting="identity"),
    "positions": lambda: ConvNN2d(4, 4, 3, candidates=torch.tensor([1, 3, 6]), aggregation="depthwise"),
    "one neighbour": lambda: ConvNN2d(4, 6, 1, candidates=Random(5)),
    "euclidean": lambda: ConvNN2d(4, 6, 3, similarity="euclidean", weighting="softmax"),
    "blend": lambda: ConvNN2d(4, 6, 3, candidate_padding=1, similarity=Blend(0.5), value_coordinates=True),
    "separable": lambda: ConvNN2d(4, 6, 3, similarity=Blend(0.5), aggregation="depthwise_separable"),
    "sum": lambda: ConvNN2d(4, 4, 3, aggregation="sum", projection=True, weighting="softmax"),
    "convolution": lambda: ConvNN2d(4, 6, 9, candidate_padding=1, stride=2, similarity="spatial"),
    "spatial": lambda: ConvNN2d(4, 6, 5, similarity="spatial", groups=2),
    "patches": lambda: ConvNN2d(4, 6, 4, unshuffle=2, shuffle=2),
    "hybrid": lambda: HybridConvNN2d(4, 6, 3, k=5, similarity="sqeuclidean"),
}
LINES: dict[str, Callable[[], nn.Module]] = {
    "one axis": lambda: ConvNN1d(4, 6, 3, candidates=Random(4), projection=True, weighting="identity"),
}
VOLUMES: dict[str, Callable[[], nn.Module]] = {"three axes": lambda: ConvNN3d(4, 6, 3, candidate_padding=1)}
TOKENS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: ConvNNAttention(8, 2, k=None, aggregation="sum"),
    "k-NN attention": lambda: ConvNNAttention(8, 2, k=3, aggregation="sum"),
    "ConvNN attention": lambda: ConvNNAttention(8, 2, k=3),
    "hybrid attention": lambda: HybridAttention(8, 2, k=3),
}
LAYERS = MAPS | LINES | VOLUMES | TOKENS


def make(name: str) -> nn.Module:
    """Make a layer, with the same parameters at every call."""
    torch.manual_seed(0)
    return LAYERS[name]()


def example(name: str, size: int = 4, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw an input of a layer, or of a kind of layers: the same at every call."""
    if name in TOKENS or "attention" in name or name == "multihead":
        shape: tuple[int, ...] = (size + 3, 8)
    elif name in LINES:
        shape = (4, size + 3)
    else:
        shape = (4, size, size + 2) if name not in VOLUMES else (4, 2, size - 1, size)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, *shape, generator=generator, dtype=dtype)


def answer(layer: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """Call a layer on one input, which multihead attention takes as queries, keys and values."""
    if isinstance(layer, ConvNNMultiheadAttention):
        return layer(x, x, x, **options)[0]
    return layer(x, **options)
