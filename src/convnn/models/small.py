"""Two networks small enough to train in seconds: the ones that ``convnn demo`` walks the spectrum with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import _checks as checks
from ..errors import invalid, missing_extra


class SmallConvNet(nn.Module):
    """A stem convolution and ``depth`` 3x3 convolutions at full resolution, global pooling, one linear layer.

    x ``(B, in_channels, H, W)`` -> logits ``(B, num_classes)``; ``global_pool`` is ``"avg"``, or ``""`` for the map
    itself (without classes). Only ``body`` is meant to be swapped: the stem sees raw pixels, and one grey value has no
    direction that a cosine could compare.

    >>> import torch
    >>> SmallConvNet(in_channels=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    global_pool: str = "avg"

    def __init__(
        self, *, in_channels: int = 3, num_classes: int = 10, width: int = 32, depth: int = 2, global_pool: str = "avg"
    ) -> None:
        super().__init__()
        for argument, value in (("in_channels", in_channels), ("width", width)):
            checks.whole(argument, value, fix="raise it")
        checks.whole("num_classes", num_classes, at_least=0)
        self.stem = _block(in_channels, width)
        self.body = nn.Sequential(*(_block(width, width) for _ in range(depth)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.num_features = self.head_hidden_size = width
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by one for ``num_classes`` classes; 0 leaves the pooled features, or the map."""
        pool = self.global_pool if global_pool is None else global_pool
        checks.name("global_pool", pool, ("avg", ""))
        if num_classes and not pool:
            raise invalid("global_pool", "'avg' where there are classes", repr(pool), "use it, or num_classes=0")
        self.num_classes, self.global_pool = num_classes, pool
        first = next(self.parameters())
        factory: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
        self.head = nn.Linear(self.num_features, num_classes, **factory) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map ``(B, width, H, W)`` of x ``(B, in_channels, H, W)``."""
        features: Tensor = self.body(self.stem(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or with ``pre_logits`` its mean ``(B, width)``."""
        pooled: Tensor = self.pool(x).flatten(1) if self.global_pool else x
        return pooled if pre_logits else self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(B, num_classes)`` of x ``(B, in_channels, H, W)``."""
        return self.forward_head(self.forward_features(x))


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


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
