"""Networks small enough for a CPU: the two of ``convnn demo``, and a residual one for 32 x 32 images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from .. import _checks as checks
from ..errors import invalid, missing_extra


class _SmallNet(nn.Module):
    """A stem, a body, pooling over the map, and one linear layer, with the methods that timm's models have.

    x ``(B, in_channels, H, W)`` -> logits ``(B, num_classes)``; ``global_pool`` is the name of the pooling, or ``""``
    for the map itself (without classes). ``keep`` names the layers that ``create_model`` does not replace.
    """

    global_pool: str = ""
    keep: tuple[str, ...] = ()
    pooling = "avg"
    scale = 1.0

    def __init__(self, stem: nn.Module, body: nn.Module, features: int, *, num_classes: int, global_pool: str) -> None:
        super().__init__()
        checks.whole("num_classes", num_classes, at_least=0)
        self.stem, self.body = stem, body
        self.pool = nn.AdaptiveMaxPool2d(1) if self.pooling == "max" else nn.AdaptiveAvgPool2d(1)
        self.num_features = self.head_hidden_size = features
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by one for ``num_classes`` classes; 0 leaves the pooled features, or the map."""
        pool = self.global_pool if global_pool is None else global_pool
        checks.name("global_pool", pool, (self.pooling, ""))
        if num_classes and not pool:
            raise invalid(
                "global_pool", f"{self.pooling!r} where there are classes", repr(pool), "use it, or num_classes=0"
            )
        self.num_classes, self.global_pool = num_classes, pool
        first = next(self.parameters())
        factory: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
        self.head = nn.Linear(self.num_features, num_classes, **factory) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map ``(B, num_features, H', W')`` of x ``(B, in_channels, H, W)``."""
        features: Tensor = self.body(self.stem(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or with ``pre_logits`` its pooled features ``(B, num_features)``."""
        pooled: Tensor = self.pool(x).flatten(1) if self.global_pool else x
        if pre_logits or not self.num_classes:
            return pooled
        logits: Tensor = self.head(pooled)
        return logits if self.scale == 1 else logits * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of x ``(B, in_channels, H, W)``."""
        return self.forward_head(self.forward_features(x))


class SmallConvNet(_SmallNet):
    """A stem convolution and ``depth`` 3x3 convolutions at full resolution, average pooling, one linear layer.

    x ``(B, in_channels, H, W)`` -> logits ``(B, num_classes)``. Only ``body`` is meant to be replaced: the stem sees
    raw pixels, and one grey value has no direction that a cosine could compare.

    >>> import torch
    >>> SmallConvNet(in_channels=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, *, in_channels: int = 3, num_classes: int = 10, width: int = 32, depth: int = 2, global_pool: str = "avg"
    ) -> None:
        for argument, value in (("in_channels", in_channels), ("width", width)):
            checks.whole(argument, value, fix="raise it")
        body = nn.Sequential(*(_block(width, width) for _ in range(depth)))
        super().__init__(_block(in_channels, width), body, width, num_classes=num_classes, global_pool=global_pool)


class SmallResNet(_SmallNet):
    """A residual network for 32 x 32 images: the network of the recipe ``cifar10_fast``.

    x ``(B, in_channels, H, W)`` -> logits ``(B, num_classes)``, H and W at least 8. ``stem`` has two 3x3 convolutions
    at full resolution, to ``widths[0]`` and ``widths[1]`` channels, and maximum pooling by 2. ``body`` has a residual
    3x3 convolution, then a stage for each further width: a 3x3 convolution, maximum pooling by 2, and a residual 3x3
    convolution. Maximum pooling and one linear layer follow, whose results are divided by 8. All 3x3 convolutions have
    stride 1 and padding 1; ``create_model`` replaces those of ``body``.

    >>> import torch
    >>> SmallResNet(widths=(8, 8, 16))(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    keep = ("stem.0", "stem.3")
    pooling = "max"
    scale = 0.125

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 128, 192),
        global_pool: str = "max",
    ) -> None:
        checks.whole("in_channels", in_channels, fix="raise it")
        if len(widths) < 2:
            raise invalid("widths", "two widths of the stem, and one for each stage", tuple(widths), "give more")
        for width in widths:
            checks.whole("widths", width, fix="raise it")
        stem = nn.Sequential(*_block(in_channels, widths[0], nn.GELU()), *_pooled(widths[0], widths[1]))
        stages = (nn.Sequential(*_pooled(before, after), _Residual(after)) for before, after in pairwise(widths[1:]))
        body = nn.Sequential(_Residual(widths[1]), *stages)
        super().__init__(stem, body, widths[-1], num_classes=num_classes, global_pool=global_pool)


class _Residual(nn.Module):
    """The input plus a 3x3 convolution of it, normalised and activated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _block(channels, channels, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + block(x)``."""
        y: Tensor = x + self.block(x)
        return y


def _pooled(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.MaxPool2d(2), nn.BatchNorm2d(out_channels), nn.GELU())


def _block(in_channels: int, out_channels: int, activation: nn.Module | None = None) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), activation or nn.ReLU())


def small_transformer(
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    width: int = 48,
    depth: int = 2,
    image_size: int = 8,
    patch: int = 2,
    global_pool: str = "avg",
) -> nn.Module:
    """Build timm's VisionTransformer at a small size: 4 heads, no class token, average pooling (or another of timm's).

    x ``(B, in_channels, image_size, image_size)`` -> logits ``(B, num_classes)``. Raises ConvNNError when the patches
    do not tile the image or the heads do not divide the width, MissingExtraError without timm.
    """
    if image_size % patch:
        raise invalid("patch", f"a divisor of image_size = {image_size}", patch, "change one of the two")
    if width % 4:
        raise invalid("width", "a multiple of 4 (there are 4 heads)", width, f"use {width + 4 - width % 4}")
    try:
        from timm.models import VisionTransformer
    except ImportError as error:
        raise missing_extra("timm", "vision") from error
    pool: Any = global_pool
    model: nn.Module = VisionTransformer(
        img_size=image_size,
        patch_size=patch,
        in_chans=in_channels,
        num_classes=num_classes,
        embed_dim=width,
        depth=depth,
        num_heads=4,
        mlp_ratio=2.0,
        class_token=False,
        global_pool=pool,
        weight_init="reset",
    )
    # timm's position embedding starts at std 0.02, made for wide models and long schedules; at this size it hides where
    # a patch is for the first dozen epochs.
    nn.init.normal_(model.get_parameter("pos_embed"), std=0.5)
    return model
