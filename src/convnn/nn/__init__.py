"""Layers: parameters, geometry and repr around one call of the operator."""

from .attention import ConvNNAttention
from .convnn import ConvNN1d, ConvNN2d, ConvNN3d
from .hybrid import HybridConvNN1d, HybridConvNN2d, HybridConvNN3d
from .hybrid_attention import HybridAttention
from .multihead import ConvNNMultiheadAttention

__all__ = [
    "ConvNN1d",
    "ConvNN2d",
    "ConvNN3d",
    "ConvNNAttention",
    "ConvNNMultiheadAttention",
    "HybridAttention",
    "HybridConvNN1d",
    "HybridConvNN2d",
    "HybridConvNN3d",
]
