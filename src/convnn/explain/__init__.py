"""Pictures of what a layer gathers, and the page that the demo writes. Plots need matplotlib, imported when one is
drawn.
"""

from .neighbours import NeighbourMap, capture_inputs, neighbour_map, neighbour_maps

__all__ = ["NeighbourMap", "capture_inputs", "neighbour_map", "neighbour_maps"]
