"""What a layer gathers, position by position, and its pictures. Plots need matplotlib, imported when one is drawn."""

from .neighbours import NeighbourMap, capture_inputs, neighbour_map, neighbour_maps

__all__ = ["NeighbourMap", "capture_inputs", "neighbour_map", "neighbour_maps"]
