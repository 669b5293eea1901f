"""The configuration of a created model: a dictionary of the keywords that build it again."""

from __future__ import annotations

import copy
import json
from typing import Any

from torch import nn

from ..errors import invalid
from .specs import format_candidates, format_similarity


def config_of(model: nn.Module) -> dict[str, Any]:
    """Return the keywords with which ``create_model`` builds a model of the same architecture, ready for JSON.

    It has later changes by ``reset_classifier``, but neither weights nor their source. Raises ConvNNError for a model
    that ``create_model`` did not make, that was converted afterwards, or whose options JSON cannot hold.

    >>> from convnn.models import create_model
    >>> model = create_model("small_cnn", num_classes=3, layer="hybrid", k=5)
    >>> config_of(model)  # doctest: +NORMALIZE_WHITESPACE
    {'name': 'small_cnn', 'num_classes': 3, 'in_channels': 3, 'layer': 'hybrid', 'k': 5, 'branch_ratio': 0.5,
     'candidates': 'all'}
    """
    config = getattr(model, "convnn_config", None)
    if not isinstance(config, dict):
        fix = "build it by convnn.models.create_model, or by timm.create_model('convnn_...')"
        raise invalid("model", "one that create_model made and nothing converted since", type(model).__name__, fix)
    config = copy.deepcopy(config)
    classes = getattr(model, "num_classes", None)
    if isinstance(classes, int):
        config["num_classes"] = classes
    pool = pool_of(model)
    if pool != getattr(model, "_convnn_pool", pool):
        config["global_pool"] = pool
    try:
        text = json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        got = next(f"{name}={value!r}" for name, value in config.items() if not _is_json(value))
        raise invalid("model", "options that JSON can hold", got, "give names instead of objects") from error
    plain: dict[str, Any] = json.loads(text)
    return plain


def remember(model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """Write a configuration on a model, its candidates and similarity in words."""
    written = dict(config)
    if "candidates" in written:
        written["candidates"] = format_candidates(written["candidates"])
    if "similarity" in written:
        written["similarity"] = format_similarity(written["similarity"])
    model.convnn_config = written  # type: ignore[assignment]  # torch's stub allows tensors and modules alone
    model._convnn_pool = pool_of(model)  # type: ignore[assignment]
    return model


def pool_of(model: nn.Module) -> str | None:
    """Return the name of the pooling before the classifier of one of timm's models, None where there is none."""
    for holder in (model, getattr(model, "head", None)):
        pool = getattr(holder, "global_pool", None)
        if pool is not None:
            return pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
    return None


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
