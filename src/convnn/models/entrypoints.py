"""Our models in timm's registry: ``timm.create_model("convnn_resnet50", layer="hybrid")``.

timm finds an entry point by its function's name and module, and its configuration in that module's ``default_cfgs``.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

from torch import nn

from .backbones import BACKBONES
from .create import create_model
from .metadata import branches_of
from .named import CONFIGURATIONS
from .registry import MODEL_CONFIGS, MODELS, TIMM_PREFIX, input_config
from .saved import load_saved

__all__: list[str] = []  # timm adds what it registers
default_cfgs: dict[str, Any] = {}


def register() -> bool:
    """Register our names with timm, each with ``convnn_`` before it; False where timm is not installed.

    ``import convnn.models`` does this. timm's keywords have timm's meaning: ``in_chans`` and ``img_size`` are
    ``in_channels`` and ``image_size`` of ``create_model``, and ``checkpoint_path`` holds the weights of the finished
    model.

    >>> import timm
    >>> register(), timm.list_models("convnn_resnet50_hybrid_*")
    (True, ['convnn_resnet50_hybrid_all', 'convnn_resnet50_hybrid_grid5', 'convnn_resnet50_hybrid_random32'])
    """
    try:
        from timm.models import is_model, register_model
    except ImportError:
        return False
    for name in (*MODELS, *BACKBONES, *CONFIGURATIONS):
        if not is_model(TIMM_PREFIX + name):
            default_cfgs[TIMM_PREFIX + name] = _default_cfg(name)
            register_model(_entry_point(name))
    return True


def _entry_point(name: str) -> Callable[..., nn.Module]:
    """Make the function that timm calls."""

    def build(pretrained: bool = False, **arguments: Any) -> nn.Module:
        keywords = {key: value for key, value in arguments.items() if value is not None}
        saved = _saved(keywords) if pretrained else {}
        model: Any = create_model(name, pretrained=pretrained and not saved, **keywords)
        cfg = model.pretrained_cfg
        if name in MODELS:  # timm has no configuration of these to begin with
            cfg = {**default_cfgs[TIMM_PREFIX + name].default.to_dict(), **cfg}
        # timm saves the name of this model, not of the one that it was built from.
        model.pretrained_cfg = model.default_cfg = {**cfg, "architecture": TIMM_PREFIX + name}
        if saved:
            load_saved(model, saved)
        built: nn.Module = model
        return built

    build.__name__ = build.__qualname__ = TIMM_PREFIX + name
    build.__module__ = __name__
    build.__doc__ = f"Build ``convnn.models.create_model({name!r}, ...)``."
    return build


def _saved(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take out what names the weights of a finished model that timm saved, in a folder or on the hub; {} for others.

    They are loaded after layers were swapped.
    """
    cfg = arguments.get("pretrained_cfg")
    if not isinstance(cfg, dict) or cfg.get("source") not in ("local-dir", "hf-hub"):
        return {}
    arguments.pop("pretrained_model_args", None)
    return dict(arguments.pop("pretrained_cfg"))


def _default_cfg(name: str) -> Any:
    """Return timm's configuration of a name: its backbone's, with the images and classes that are ours."""
    from timm.models import DefaultCfg, PretrainedCfg, get_pretrained_cfg

    configuration, options = CONFIGURATIONS.get(name, (name, {}))
    backbone = BACKBONES.get(configuration)
    base = None if backbone is None else get_pretrained_cfg(backbone.timm)
    cfg = PretrainedCfg(**MODEL_CONFIGS.get(name, {})) if base is None else base
    if backbone is None or backbone.prepare is not None:  # nobody has published weights
        takes = input_config(name)
        classes = 10 if backbone is None or backbone.num_classes is None else backbone.num_classes
        scale, pool = cfg.input_size[-1] // takes.size, cfg.pool_size
        cfg = dataclasses.replace(
            cfg, url="", file=None, hf_hub_id=None, hf_hub_filename=None, source=None, custom_load=False, tag=None,
            num_classes=classes, input_size=(3, takes.size, takes.size), mean=takes.mean, std=takes.std,
            pool_size=None if pool is None else tuple(side // scale for side in pool),
        )  # fmt: skip
    if backbone is not None and backbone.timm.startswith("vgg") and options.get("layer") == "hybrid":
        # Its first convolution is swapped too: it has stride 1.
        first: Any = branches_of(str(cfg.first_conv), options["branch_ratio"])
        cfg = dataclasses.replace(cfg, first_conv=first)
    return DefaultCfg(tags=deque([""]), cfgs={"": cfg})
