"""ConvNN layers whose queries share few candidates: their map needs no padded copy."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ..knn import sample_map
from ..stages import geometry
from ..types import Grid, Lattice, Random


def samples_map(layer: Any) -> bool:
    """Whether a ConvNN layer reads nothing of its map but the queries' own tokens and a few candidates.

    Read once from its options: then the zeros around the map need not be written.
    """
    few = isinstance(layer.candidates, Random | Grid | Tensor)
    by_features = isinstance(layer.similarity, str) and layer.similarity != "spatial"
    slots = layer.aggregation == "standard" and layer.slot_groups == 1 and layer.weighting == "ones"
    plain = not (layer.projection or layer.value_coordinates) and layer.padding_mode == "zeros"
    on_the_map = all(margin >= amount for margin, amount in zip(layer.query_margin, layer.padding, strict=True))
    return few and by_features and slots and plain and on_the_map


def sample(layer: Any, x: Tensor) -> tuple[Tensor, Lattice] | None:
    """Aggregate a map ``(B, C, *grid)`` as its tokens lie, or return None where the layer cannot.

    Returns ``(B, N, C_out)`` and where the queries stand on the padded map.
    """
    if not layer.unpadded or layer.impl not in ("auto", "sampled"):
        return None
    sizes = [size // layer.unshuffle for size in x.shape[2:]]
    grid = tuple([size + 2 * amount for size, amount in zip(sizes, layer.padding, strict=True)])
    if isinstance(layer.candidates, Random | Grid) and layer.candidates.takes_all(grid):
        return None
    x = geometry.pixel_unshuffle(x, layer.unshuffle)
    lattice = geometry.lattice_of(grid, layer.query_margin, layer.stride)
    inside = tuple([margin - amount for margin, amount in zip(lattice.origin, layer.padding, strict=True)])
    query = geometry.to_tokens(geometry.at_lattice(x, dataclasses.replace(lattice, origin=inside)))
    out = sample_map(
        query, geometry.to_tokens(x), layer.weight, layer.bias, k=layer.k, padding=layer.padding, grid=grid,
        query_index=lattice, **layer._search_options(),
    )  # fmt: skip
    return out, lattice
