"""Models: backbones of timm and two small networks, with ``layer`` choosing between convolution and attention."""

from . import published
from .backbones import BACKBONES, InputConfig
from .config import config_of
from .create import create_model
from .entrypoints import register
from .layers import LAYERS, swap_layers
from .named import CONFIGURATIONS
from .pretrained import from_pretrained, save_pretrained
from .registry import MODELS, check_model, input_config, list_models
from .small import SmallConvNet, SmallResNet, small_transformer
from .specs import format_candidates, format_similarity, parse_candidates, parse_similarity

__all__ = [
    "BACKBONES",
    "CONFIGURATIONS",
    "LAYERS",
    "MODELS",
    "InputConfig",
    "SmallConvNet",
    "SmallResNet",
    "check_model",
    "config_of",
    "create_model",
    "format_candidates",
    "format_similarity",
    "from_pretrained",
    "input_config",
    "list_models",
    "parse_candidates",
    "parse_similarity",
    "published",
    "register",
    "save_pretrained",
    "small_transformer",
    "swap_layers",
]

register()  # so that timm knows our names as soon as this package is imported; nothing happens without timm
