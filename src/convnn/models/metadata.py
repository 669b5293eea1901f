"""Corrections of timm's configuration of a model: its images, its last map, its first convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ConvNNError
from ..nn import HybridConvNN1d, HybridConvNN2d, HybridConvNN3d
from .backbones import InputConfig
from .sizes import run_on_shapes

_OF_ANOTHER_SIZE = ("test_input_size", "min_input_size", "test_pool_size")


def describe_images(model: Any, takes: InputConfig, *, channels: int, resized: bool, overrides: dict[str, Any]) -> None:
    """Correct the images and the last map in timm's configuration of a model.

    Args:
        model: of ``timm.create_model``; replacing its layers later does not change the size of a map.
        takes: the images of the model.
        channels: of the images.
        resized: whether another stem than timm's changes the size of every map.
        overrides: further entries that differ from timm's.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict):
        return
    cfg = dict(cfg)
    if resized or tuple(cfg["input_size"][1:]) != (takes.size, takes.size):
        cfg = {key: value for key, value in cfg.items() if key not in _OF_ANOTHER_SIZE}
        if cfg.get("pool_size") is not None:
            cfg["pool_size"] = last_map(model, channels=channels, size=takes.size)
    overrides = {key: value for key, value in overrides.items() if key in cfg}
    model.pretrained_cfg = model.default_cfg = {**cfg, **overrides, "input_size": (channels, takes.size, takes.size)}


def describe_layers(model: Any) -> None:
    """Correct the first convolutions in timm's configuration of a model, after its layers are replaced."""
    cfg = getattr(model, "pretrained_cfg", None)
    if not isinstance(cfg, dict):
        return
    first = first_convolutions(model, cfg.get("first_conv"))
    model.pretrained_cfg = model.default_cfg = {**cfg, "first_conv": first}
    if isinstance(getattr(model, "_traits", None), dict):  # timm's record of how a model differs from its weights
        model._traits = {**model._traits, "first_conv": first}


def first_convolutions(model: nn.Module, names: Any) -> Any:
    """Return the names of the layers that read the images: of a hybrid, those of its branches.

    One name as a text, several as a tuple, as timm has them.

    >>> first_convolutions(nn.Sequential(HybridConvNN2d(3, 4, 3), nn.ReLU()), "0")
    ('0.convnn', '0.conv')
    """
    if not names:
        return names
    layers = dict(model.named_modules())
    branches: list[str] = []
    for name in (names,) if isinstance(names, str) else names:
        layer = layers.get(name)
        if isinstance(layer, HybridConvNN1d | HybridConvNN2d | HybridConvNN3d):
            branches += [f"{name}.{branch}" for branch in ("convnn", "conv") if getattr(layer, branch) is not None]
        else:
            branches.append(name)
    return branches[0] if len(branches) == 1 else tuple(branches)


def branches_of(name: str, branch_ratio: float) -> str | tuple[str, str]:
    """Return the names of the branches that a hybrid of this ratio has.

    >>> branches_of("features.0", 0.5), branches_of("features.0", 0.0)
    (('features.0.convnn', 'features.0.conv'), 'features.0.conv')
    """
    if 0 < branch_ratio < 1:
        return f"{name}.convnn", f"{name}.conv"
    return f"{name}.convnn" if branch_ratio else f"{name}.conv"


class _Features(nn.Module):
    """``forward_features`` as a module's call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.model.forward_features(x)  # type: ignore[operator]
        return features


def last_map(model: nn.Module, *, channels: int, size: int) -> tuple[int, int] | None:
    """Return the height and width of the last feature map of a square image, computed from shapes alone.

    None for a model that has no such map, or that cannot run on shapes alone.

    >>> from .small import SmallConvNet
    >>> last_map(SmallConvNet(), channels=3, size=16)
    (16, 16)
    """
    if not hasattr(model, "forward_features"):
        return None
    try:
        features = run_on_shapes(_Features(model), channels=channels, size=size)
    except (ConvNNError, RuntimeError, NotImplementedError):
        return None
    if features.dim() != 4:
        return None
    axes = (1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else (2, 3)
    return features.shape[axes[0]], features.shape[axes[1]]
