"""Named configurations: the rows of the published tables, each a backbone and its options."""

from __future__ import annotations

from typing import Any

_VGG = "published_vgg11"
_VIT = "published_vit_tiny"
_VIT_BASE = "published_vit_base"
_RESNET = "published_resnet50"
_SIDES = (4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)


def _resnet50() -> dict[str, tuple[str, dict[str, Any]]]:
    names: dict[str, dict[str, Any]] = {
        "conv": {"layer": "conv"},
        "convnn_all": {"layer": "convnn", "k": 9},
        "hybrid_all": {"layer": "hybrid", "k": 9},
        "hybrid_random32": {"layer": "hybrid", "k": 9, "candidates": "random:32"},
        "hybrid_grid5": {"layer": "hybrid", "k": 9, "candidates": "grid:5"},
    }
    return {f"resnet50_{name}": (_RESNET, options) for name, options in names.items()}


def _vgg11() -> dict[str, tuple[str, dict[str, Any]]]:
    blend = {"similarity": "blend:0.5"}
    names: dict[str, dict[str, Any]] = {"conv": {"branch_ratio": 0.0}}
    for branch, ratio in (("convnn", 1.0), ("hybrid", 0.5)):
        shared = {"branch_ratio": ratio, "k": 9}
        names[f"{branch}_all"] = shared
        names[f"{branch}_blend"] = {**shared, **blend}
        names[f"{branch}_blend_coordinates"] = {**shared, **blend, "value_coordinates": True}
        for side in _SIDES:
            names[f"{branch}_random{side * side}"] = {**shared, "candidates": f"random:{side * side}"}
            names[f"{branch}_grid{side}"] = {**shared, "candidates": f"grid:{side}"}
    return {f"vgg11_{name}": (_VGG, {"layer": "hybrid", **options}) for name, options in names.items()}


def _vit_tiny() -> dict[str, tuple[str, dict[str, Any]]]:
    convnn = {"layer": "convnn", "k": 9}
    names: dict[str, dict[str, Any]] = {
        "attention": {"layer": "attention"},
        "knn": {"layer": "knn", "k": 9},
        "convnn_all": convnn,
        "convnn_standard": {**convnn, "aggregation": "standard"},
    }
    for number in range(16, 193, 16):
        names[f"convnn_random{number}"] = {**convnn, "candidates": f"random:{number}"}
        names[f"convnn_grid{number}"] = {**convnn, "candidates": f"grid:{number}"}
    return {f"vit_tiny_{name}": (_VIT, options) for name, options in names.items()}


def _vit_base() -> dict[str, tuple[str, dict[str, Any]]]:
    names: dict[str, dict[str, Any]] = {
        "attention": {"layer": "attention"},
        "convnn_all": {"layer": "convnn", "k": 9},
        "convnn_k16": {"layer": "convnn", "k": 16},
        "convnn_random32": {"layer": "convnn", "k": 9, "candidates": "random:32"},
        # The table says k = 9 of this row; its parameters are those of k = 16.
        "convnn_grid128": {"layer": "convnn", "k": 16, "candidates": "grid:128"},
    }
    return {f"vit_base_{name}": (_VIT_BASE, options) for name, options in names.items()}


CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {**_resnet50(), **_vgg11(), **_vit_tiny(), **_vit_base()}
"""Name to backbone and options of ``create_model``. ``grid`` counts per axis; a transformer's tokens are one axis."""
