"""``create_model``: a model by name, its stem, its weights, and then its layers swapped."""

from __future__ import annotations

from typing import Any

from torch import nn

from .. import _checks as checks
from .. import _swap as swap
from ..errors import invalid, unknown_name
from . import config
from .backbones import BACKBONES, STEMS
from .graphs import late_graph
from .layers import LAYERS, attention_types, check_layer, swap_layers
from .metadata import describe_images, describe_layers
from .registry import MODEL_CONFIGS, MODELS, ResolvedName, find_model, input_config
from .sizes import check_sizes, check_slots
from .specs import format_candidates, parse_candidates, parse_similarity

# A hybrid takes num_heads from the attention.
_SWAP_OPTIONS = (swap.OPTIONS - {"num_heads"}) | {"init", "pattern"}
_COMMON = {"k": 9, "branch_ratio": 0.5, "candidates": "all"}
# The source and the location of weights are not part of the architecture.
_NOT_SAVED = {"pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "checkpoint_path", "cache_dir",
              "device", "dtype"}  # fmt: skip


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    image_size: int | None = None,
    pretrained: bool = False,
    layer: str | None = None,
    stem: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model by name, with its convolutions or its attention swapped.

    The models are timm's own: ``forward_features``, ``forward_head``, ``reset_classifier``, ``features_only`` and the
    rest of its interface work on them. Weights are loaded first, then layers are swapped.

    Args:
        name: a backbone (``"resnet50"``, ``"vit_tiny"``, ...), a named configuration (``"resnet50_hybrid_random32"``),
            ``"small_cnn"``, ``"small_transformer"``, or any model of timm; ``list_models()`` has them all.
        num_classes: of the classifier; the model's own number if left out, 0 for none.
        in_channels: of the images.
        image_size: side of the images; transformers need it, and for other models ``k`` is checked against it.
        pretrained: load timm's weights, or with ``pretrained_cfg_overlay=dict(file=...)`` those of a file;
            ``checkpoint_path`` loads a file that holds every weight of timm's model.
        layer: a name of ``LAYERS``: ``"conv"``, ``"convnn"``, ``"hybrid"``, ``"spatial"`` or ``"blend"`` for
            convolutions, ``"attention"``, ``"convnn"``, ``"knn"`` or ``"hybrid"`` for transformers.
        stem: ``"imagenet"`` (timm's own) or ``"cifar"``, for 32 x 32 images.
        **options: of the layers: ``k=9``, ``candidates="all"`` (or ``Random(32)``, ``"random:32"``, ``"grid:5"``, ...),
            ``similarity`` (``"cosine"``, ``"blend:0.5"``, ...), ``branch_ratio=0.5``, ``init="default"``, ``pattern``
            (globs of the names of the layers to replace) and every other option of ``convnn.convert``. All other
            keywords are passed to ``timm.create_model`` (``drop_rate``, ``features_only``, ...).

    Returns:
        The model; ``convnn.models.config_of`` returns the keywords that build its architecture again.

    Raises:
        ConvNNError: an unknown name or option; a layer, stem or k that does not fit the model.

    Example:
        >>> create_model("small_cnn", num_classes=10, in_channels=1).head
        Linear(in_features=32, out_features=10, bias=True)
        >>> model = create_model("resnet18", num_classes=10, layer="hybrid", candidates="random:32", stem="cifar")
        >>> model.layer1[0].conv1.convnn.candidates
        Random(r=32, seed=None, generator=None)
    """
    entry = find_model(name)
    options = {**entry.options, **options}
    layer = options.pop("layer", None) if layer is None else layer
    in_channels, image_size = options.pop("in_chans", in_channels), _side(options.pop("img_size", image_size))
    shape = _shape(num_classes, in_channels, image_size)
    swapping = _read({key: options.pop(key) for key in list(options) if key in _SWAP_OPTIONS}, layer)
    _check_layer(entry, layer)
    _check_stem(entry, stem)
    loads = bool(pretrained or options.get("checkpoint_path"))
    if loads and not entry.backbone.pretrained:
        raise invalid("pretrained", f"False for {entry.name!r} (it has no pretrained weights)", True, "leave it out")
    takes = input_config(name, image_size, stem)
    graph = late_graph(options, layer)
    wrapper = {} if graph is None else {"feature_cls": graph}
    model, keep = _build(entry, stem, shape, {**options, **wrapper, "pretrained": pretrained})
    describe_images(model, takes, channels=in_channels, resized=stem == "cifar", overrides=_overrides(entry))
    if entry.backbone.prepare is not None:
        entry.backbone.prepare(model, layer)
    architecture: dict[str, Any] = {"name": entry.name, **shape}
    if layer is not None:
        swapping = {**_COMMON, **entry.backbone.options.get(layer, {}), **swapping}
        sized = image_size is not None or stem == "cifar" or _has_fixed_size(entry)
        if sized:
            check_slots(swapping["k"], size=takes.size, padding=swapping.get("candidate_padding"))
        init = swapping.pop("init", _default_init(model, layer, swapping) if loads else "default")
        model = swap_layers(model, layer, init=init, keep=keep, inplace=True, **swapping)
        unused = {*_COMMON, "similarity"} - set(LAYERS[layer].takes)
        unused |= {"pattern"} if LAYERS[layer].to is None else set()
        if entry.backbone.finish is not None:
            entry.backbone.finish(model)
        architecture |= {"layer": layer, **{key: value for key, value in swapping.items() if key not in unused}}
        if sized:
            check_sizes(model, channels=in_channels, size=takes.size)
    architecture |= {} if stem is None else {"stem": stem}
    describe_layers(model)
    model = model if graph is None else graph.wrap(model)
    return config.remember(
        model, {**architecture, **{key: value for key, value in options.items() if key not in _NOT_SAVED}}
    )


def _side(size: Any) -> int | None:
    """Return the side of a square image, which timm writes as one number or two."""
    pair = isinstance(size, list | tuple) and len(size) == 2
    if pair and size[0] != size[1]:
        raise invalid("img_size", "one side (images are square)", size, "build the model by timm, then convnn.convert")
    side = size[0] if pair else size
    return None if side is None else checks.whole("image_size", side)


def _shape(num_classes: int | None, in_channels: int, image_size: int | None) -> dict[str, int]:
    """Return the numbers of channels and classes, and the image size, as far as they are given."""
    shape = {"in_channels": checks.whole("in_channels", in_channels)}
    if num_classes is not None:
        shape = {"num_classes": checks.whole("num_classes", num_classes, at_least=0), **shape}
    return shape if image_size is None else {**shape, "image_size": image_size}


def _read(swapping: dict[str, Any], layer: str | None) -> dict[str, Any]:
    """Parse text among the options of the layers; raises ConvNNError for options without a layer."""
    for option, value in swapping.items():
        if layer is None:
            raise invalid(option, "none without a layer (nothing is swapped)", repr(value), "give layer=")
    if "candidates" in swapping:
        swapping["candidates"] = parse_candidates(swapping["candidates"])
        format_candidates(swapping["candidates"])  # raises ConvNNError if a configuration cannot hold it
    if swapping.get("similarity", "") is None:
        del swapping["similarity"]
    if "similarity" in swapping:
        swapping["similarity"] = parse_similarity(swapping["similarity"])
    return swapping


def _check_layer(entry: ResolvedName, layer: str | None) -> None:
    if layer is None:
        return
    check_layer(layer)
    if entry.name in BACKBONES and layer not in (*entry.backbone.layers, "conv", "attention"):
        others = ", ".join(name for name, other in BACKBONES.items() if layer in other.layers)
        expected = f"one of {', '.join(map(repr, entry.backbone.layers))} for {entry.name}"
        raise invalid("layer", expected, repr(layer), f"choose one of these, or one of the models {others}")


def _check_stem(entry: ResolvedName, stem: str | None) -> None:
    if stem is None:
        return
    checks.name("stem", stem, STEMS)
    if stem == "cifar" and entry.backbone.cifar is None:
        having = ", ".join(name for name, one in BACKBONES.items() if one.cifar is not None)
        expected = f"'imagenet' ({entry.name} has one stem only)"
        raise invalid("stem", expected, repr(stem), f"leave it out, or use one of the models {having}")


def _has_fixed_size(entry: ResolvedName) -> bool:
    """True if the model is built for one size of images."""
    if not entry.timm:
        return True
    import timm

    cfg = timm.get_pretrained_cfg(entry.timm)
    return cfg is not None and bool(cfg.fixed_input_size)


def _build(
    entry: ResolvedName, stem: str | None, shape: dict[str, int], options: dict[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model before its layers are replaced, and the names of layers to keep."""
    if not entry.timm:
        for option in options.keys() - {"pretrained", "global_pool"}:
            raise unknown_name("option", option, sorted({*_SWAP_OPTIONS, "layer"}), f" for {entry.name}")
        arguments = {**shape, **{key: value for key, value in options.items() if key == "global_pool"}}
        small: Any = MODELS[entry.name](**{"num_classes": 10, "image_size": input_config(entry.name).size, **arguments})
        small.pretrained_cfg = MODEL_CONFIGS[entry.name]
        return small, getattr(small, "keep", ())
    arguments = {**entry.backbone.arguments, "in_chans": shape["in_channels"], **options}
    classes = shape.get("num_classes", entry.backbone.num_classes)
    if classes is not None:
        arguments["num_classes"] = classes
    size = shape.get("image_size", 32 if stem == "cifar" else None)
    if size is not None and _has_fixed_size(entry):
        arguments["img_size"] = size
    if stem != "cifar" or entry.backbone.cifar is None:
        return _from_timm(entry.timm, arguments), ()
    if isinstance(entry.backbone.cifar, dict):
        return _from_timm(entry.timm, {**arguments, **entry.backbone.cifar}), ()
    model = _from_timm(entry.timm, arguments)
    return model, (entry.backbone.cifar(model),)


def _overrides(entry: ResolvedName) -> dict[str, Any]:
    """Return the entries in which a published network differs from timm's configuration of its backbone."""
    takes, classes = entry.backbone.takes, entry.backbone.num_classes
    entries = {} if takes is None else {"mean": takes.mean, "std": takes.std}
    return entries if classes is None else {**entries, "num_classes": classes}


def _from_timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, **arguments)
    except TypeError as error:
        unknown = next((key for key in arguments if f"unexpected keyword argument '{key}'" in str(error)), None)
        if unknown is None:
            raise
        known = sorted({*_SWAP_OPTIONS, "layer", "stem", "drop_rate", "features_only"})
        raise unknown_name("option", unknown, known, f" or one of timm's for {name}") from error
    return model


def _default_init(model: nn.Module, layer: str, swapping: dict[str, Any]) -> str:
    """Return the ``init`` of layers whose originals have loaded weights, which are kept where they fit."""
    attention = any(isinstance(part, attention_types()) for part in model.modules())
    branch = layer == "hybrid" and not attention and swapping["branch_ratio"] < 1 and "kernel_size" not in swapping
    return "from_original" if branch or (layer == "convnn" and attention) else "default"
