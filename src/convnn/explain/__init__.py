"""The neighbours of a layer, position by position, and plots of them. Plots import matplotlib when one is drawn."""

from .neighbors import NeighborMap, capture_inputs, neighbor_map, neighbor_maps

__all__ = ["NeighborMap", "capture_inputs", "neighbor_map", "neighbor_maps"]
