"""The 214 published configurations, and the arguments that make them ours.

``rows()`` reads ``tests/data/published.json``; ``build(row)`` makes the model of a row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from convnn import Blend, Grid, Random
from convnn.models import published
from convnn.types import Candidates, Similarity

DATA = Path(__file__).parent / "data" / "published.json"


def rows() -> list[dict[str, Any]]:
    """Return the configurations, in the published code's words, with what was measured of each."""
    loaded: list[dict[str, Any]] = json.loads(DATA.read_text(encoding="utf-8"))["rows"]
    return loaded


def build(row: dict[str, Any]) -> nn.Module:
    """Make the model of a row."""
    return published.vgg11(**vgg11(row)) if row["model"] == "vgg11" else published.vit_tiny(**vit_tiny(row))


def image_of(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Return the shape of the one image that the row was measured on."""
    side = 32 if row["model"] == "vgg11" else 224
    return (1, 3, side, side)


def name_of(row: dict[str, Any]) -> str:
    """Name a row for a test's report."""
    left_out = ("params", "gflops_profiler", "gflops_profiler_by_op", "gflops_true", "magnitude_type", "padding",
                "num_heads", "patch_size", "convolution_type", "lambda_param")  # fmt: skip
    return "-".join(str(value) for key, value in row.items() if key not in left_out)


def vgg11(row: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``published.vgg11``.

    A row without K is the convolution baseline, one without a kernel size is ConvNN alone. In ``Loc_Col`` similarity,
    and as the values of ``Loc_Col`` aggregation, coordinates join the features.
    """
    options: dict[str, Any] = {"num_classes": row["num_classes"], "branch_ratio": row["branch_ratio"]}
    if "kernel_size" in row:
        options["kernel_size"] = row["kernel_size"]
    if "K" not in row:
        return options
    similarity: Similarity = "cosine"
    if row["similarity_type"] == "Loc_Col":
        similarity = Blend(row["lambda_param"], feature="cosine")
    return {
        **options,
        "k": row["K"],
        "similarity": similarity,
        "value_coordinates": row["aggregation_type"] == "Loc_Col",
        "candidates": candidates(row),
    }


def vit_tiny(row: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``published.vit_tiny``."""
    options: dict[str, Any] = {"num_classes": row["num_classes"]}
    if row["layer"] == "Attention":
        return {**options, "attention": "attention"}
    if row["layer"] == "KvtAttention":
        return {**options, "attention": "knn", "k": row["K"]}
    return {
        **options,
        "attention": "convnn",
        "k": row["K"],
        "aggregation": row["convolution_type"],
        "candidates": candidates(row),
    }


def candidates(row: dict[str, Any]) -> Candidates:
    """Return who may be a neighbour: ``num_samples`` counts tokens if random, tokens an axis if spatial."""
    if row["sampling_type"] == "all":
        return "all"
    return Random(row["num_samples"]) if row["sampling_type"] == "random" else Grid(row["num_samples"])
