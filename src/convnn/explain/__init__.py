"""The neighbours of a layer, position by position, and plots of them. Plots import matplotlib when one is drawn."""

from .neighbours import NeighbourMap, capture_inputs, neighbour_map, neighbour_maps

__all__ = ["NeighbourMap", "capture_inputs", "neighbour_map", "neighbour_maps"]
