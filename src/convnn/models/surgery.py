"""Changes to timm's models that timm has no keyword for: stems for small images, parts of the published networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._utils.modules import put
from ..nn import ConvNNAttention


def small_stem(model: nn.Module, kernel: int = 3, stride: int = 1) -> str:
    """Give a network whose first convolution has a stride a smaller one, and take out the max-pool that follows.

    Changes the model itself, plain or wrapped by timm's ``features_only``, and the reductions that it reports. Returns
    the name of the new convolution.

    >>> import timm
    >>> model = timm.create_model("resnet18")
    >>> model.get_submodule(small_stem(model))
    Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
    """
    layers = dict(model.named_modules())
    name: str
    name, first = next((name, layer) for name, layer in layers.items() if isinstance(layer, nn.Conv2d))
    new = nn.Conv2d(
        first.in_channels, first.out_channels, kernel, stride, padding=(kernel - 1) // 2, bias=first.bias is not None,
        device=first.weight.device, dtype=first.weight.dtype,
    )  # fmt: skip
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    factor = first.stride[0] // stride
    put(model, name, new)
    pool = next((name for name, layer in layers.items() if isinstance(layer, nn.MaxPool2d)), None)
    if pool is not None:
        put(model, pool, nn.Identity())
        factor *= 2
    for entry in _feature_info(model):
        entry["reduction"] = max(1, entry["reduction"] // factor)
    return name


def _feature_info(model: Any) -> list[dict[str, Any]]:
    """Return timm's table of feature maps: a list, or held by the wrapper of ``features_only``."""
    info = getattr(model, "feature_info", [])
    rows: list[dict[str, Any]] = info if isinstance(info, list) else info.info
    return rows


def torch_initialization(model: nn.Module) -> None:
    """Initialise every layer as torch does, not as timm's recipes do."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d | nn.LayerNorm):
            layer.reset_parameters()


def all_biases(model: nn.Module) -> None:
    """Give a bias of zero to every convolution that has none."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.out_channels))


class LinearPreLogits(nn.Module):
    """The published VGG's hidden layers: 7x7 adaptive pooling, then two linear layers, instead of timm's convolutions.

    x ``(B, C, H, W)`` -> ``(B, width, 1, 1)``, which timm's head takes.

    >>> LinearPreLogits(8, 16)(torch.zeros(2, 8, 1, 1)).shape
    torch.Size([2, 16, 1, 1])
    """

    def __init__(self, in_channels: int, width: int, *, drop_rate: float = 0.5) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * 49, width)
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, width, 1, 1)``."""
        x = F.adaptive_avg_pool2d(x, 7).flatten(1)
        x = self.drop(F.relu(self.fc1(x)))
        return F.relu(self.fc2(x))[..., None, None]


def linear_pre_logits(model: nn.Module, *, drop_rate: float = 0.5) -> None:
    """Replace the hidden convolutions of timm's VGG head by linear layers of the same sizes.

    A model without a head (timm's ``features_only``) stays as it is.
    """
    vgg: Any = model
    if not hasattr(model, "pre_logits"):
        return
    first = next(model.parameters())
    new = LinearPreLogits(vgg.num_features, vgg.head.in_features, drop_rate=drop_rate)
    vgg.pre_logits = new.to(first.device, first.dtype)


class DroppedLinear(nn.Linear):
    """A linear layer that drops elements of its input in training; its parameters are those of the given one.

    >>> DroppedLinear(nn.Linear(2, 3), 0.5)(torch.ones(4, 2)).shape
    torch.Size([4, 3])
    """

    def __init__(self, linear: nn.Linear, probability: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.drop = nn.Dropout(probability)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        return super().forward(self.drop(x))


def dropout_after_aggregation(model: nn.Module) -> None:
    """Apply the dropout of ConvNN attention to the output of its slots, not to the neighbours' weights."""
    for layer in model.modules():
        if isinstance(layer, ConvNNAttention) and layer.aggregation != "sum" and layer.attn_drop.p:
            layer.proj = DroppedLinear(layer.proj, layer.attn_drop.p)
            layer.attn_drop.p = 0.0


def fixed_positions(model: nn.Module) -> None:
    """Replace the learned positions of timm's VisionTransformer by fixed sinusoidal ones: a buffer, no parameter."""
    vit: Any = next(part for part in model.modules() if hasattr(part, "pos_embed"))  # features_only wraps it
    learned: Tensor = vit.pos_embed
    table = sinusoids(learned.shape[1], learned.shape[2]).to(device=learned.device, dtype=learned.dtype)
    del vit.pos_embed
    vit.register_buffer("pos_embed", table.unsqueeze(0))


def sinusoids(length: int, width: int) -> Tensor:
    """Return ``(length, width)``: ``sin(n / 10000^(2c / width))`` in the even columns, the cosine in the odd ones.

    >>> sinusoids(2, 4)[0]
    tensor([0., 1., 0., 1.])
    """
    position = torch.arange(length, dtype=torch.float32).unsqueeze(1)
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    return torch.stack([(position * rate).sin(), (position * rate).cos()], dim=2).flatten(1)[:, :width]


def attention_without_biases(model: nn.Module) -> None:
    """Take the bias of every output projection of timm's attention (its keyword takes the MLP's as well)."""
    for name, layer in model.named_modules():
        if name.endswith("attn.proj") and isinstance(layer, nn.Linear):
            layer.register_parameter("bias", None)
