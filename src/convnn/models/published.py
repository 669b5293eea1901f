"""The published networks, to the parameter: any configuration of VGG-11, ViT-Tiny and ResNet-50.

They were trained on 32 x 32 images (VGG-11), on such images enlarged to 224 (ViT-Tiny) and on ImageNet (ResNet-50).
``convnn.models.create_model`` has names for the configurations that the tables show; these functions make the others.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .create import create_model


def vgg11(num_classes: int = 10, **options: Any) -> nn.Module:
    """Build the published VGG-11: every one of its 8 convolutions is a hybrid layer, a 1x1 mix included.

    Args:
        num_classes: of the classifier.
        **options: ``branch_ratio=0.5`` (0: the convolution baseline; 1: ConvNN alone), ``kernel_size=3``, ``k=9``,
            ``similarity="cosine"`` or ``Blend(0.5)``, ``candidates="all"``, ``Random(r)`` or ``Grid(g)``,
            ``value_coordinates=False``, and every other keyword of ``create_model``.

    Shapes:
        ``(B, 3, 32, 32)`` -> ``(B, num_classes)``.

    Raises:
        ConvNNError: an option does not exist or does not fit.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = vgg11(num_classes=10, k=9, candidates="random:144")
        >>> sum(p.numel() for p in model.parameters())
        130015690
    """
    return create_model("published_vgg11", num_classes=num_classes, **{"layer": "hybrid", **options})


def vit_tiny(num_classes: int = 10, *, attention: str = "convnn", **options: Any) -> nn.Module:
    """Build the published ViT-Tiny: one head, no biases in attention, fixed sinusoidal positions.

    Args:
        num_classes: of the classifier.
        attention: ``"attention"``, ``"knn"`` (KVT), ``"convnn"`` or ``"hybrid"``.
        **options: ``k=9``, ``candidates="all"``, ``Random(r)`` or ``Grid(g)`` (of the sequence of 197 tokens),
            ``aggregation="depthwise"`` or ``"standard"``, and every other keyword of ``create_model``.

    Shapes:
        ``(B, 3, 224, 224)`` -> ``(B, num_classes)``.

    Raises:
        ConvNNError: an option does not exist or does not fit.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = vit_tiny(num_classes=10, attention="attention")
        >>> sum(p.numel() for p in model.parameters())
        5479306
    """
    return create_model("published_vit_tiny", num_classes=num_classes, **{"layer": attention, **options})


def resnet50(num_classes: int = 1000, *, layer: str = "hybrid", **options: Any) -> nn.Module:
    """Build the published ResNet-50: its 13 3x3 convolutions of stride 1 are replaced.

    Args:
        num_classes: of the classifier.
        layer: ``"conv"`` (the published baseline: every convolution with a bias), ``"convnn"`` or ``"hybrid"``.
        **options: ``k=9``, ``branch_ratio=0.5``, ``candidates``, and every other keyword of ``create_model``.

    Shapes:
        ``(B, 3, 224, 224)`` -> ``(B, num_classes)``.

    Raises:
        ConvNNError: an option does not exist or does not fit.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = resnet50(layer="hybrid", candidates="random:32")
        >>> sum(p.numel() for p in model.parameters())
        26474760
    """
    return create_model("published_resnet50", num_classes=num_classes, **{"layer": layer, **options})
