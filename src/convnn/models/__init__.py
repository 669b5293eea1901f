"""Models: two small networks, timm's by name, and ``swap_layers``, which turns any of them into a ConvNN model."""

from .layers import LAYERS, parse_candidates, swap_layers
from .registry import MODELS, InputConfig, check_model, create_model, input_config, list_models
from .small import SmallConvNet, small_transformer

__all__ = [
    "LAYERS",
    "MODELS",
    "InputConfig",
    "SmallConvNet",
    "check_model",
    "create_model",
    "input_config",
    "list_models",
    "parse_candidates",
    "small_transformer",
    "swap_layers",
]
