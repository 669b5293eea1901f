"""ConvNN: convolution and self-attention as one operator, k-nearest-neighbour aggregation."""

from .convert import conversion_report, convert
from .errors import ConversionWarning, ConvNNError, MissingExtraError
from .knn import explain_choice, knn_aggregate, knn_gather, knn_search
from .nn import (
    ConvNN1d,
    ConvNN2d,
    ConvNN3d,
    ConvNNAttention,
    ConvNNMultiheadAttention,
    HybridAttention,
    HybridConvNN1d,
    HybridConvNN2d,
    HybridConvNN3d,
)
from .types import Blend, Choice, Grid, Lattice, Neighbors, Random, Window

__version__ = "0.1.0"

__all__ = [
    "Blend",
    "Choice",
    "ConvNN1d",
    "ConvNN2d",
    "ConvNN3d",
    "ConvNNAttention",
    "ConvNNError",
    "ConvNNMultiheadAttention",
    "ConversionWarning",
    "Grid",
    "HybridAttention",
    "HybridConvNN1d",
    "HybridConvNN2d",
    "HybridConvNN3d",
    "Lattice",
    "MissingExtraError",
    "Neighbors",
    "Random",
    "Window",
    "__version__",
    "conversion_report",
    "convert",
    "explain_choice",
    "knn_aggregate",
    "knn_gather",
    "knn_search",
]
