"""ConvNN: convolution and self-attention as one operator, k-nearest-neighbour aggregation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._convert import conversion_report, convert
    from .errors import ConversionWarning, ConvNNError, MissingExtraError
    from .knn import explain_choice, knn_aggregate, knn_gather, knn_search
    from .maps import QueryGrid
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
    from .types import Blend, Choice, Grid, Neighbors, Random, Window

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
    "MissingExtraError",
    "Neighbors",
    "QueryGrid",
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

# Names are imported when they are first used: the command line answers --help without importing PyTorch.
_NAMES = {
    "_convert": ("conversion_report", "convert"),
    "errors": ("ConversionWarning", "ConvNNError", "MissingExtraError"),
    "knn": ("explain_choice", "knn_aggregate", "knn_gather", "knn_search"),
    "nn": tuple(name for name in __all__ if name.startswith(("ConvNN", "Hybrid")) and name != "ConvNNError"),
    "maps": ("QueryGrid",),
    "types": ("Blend", "Choice", "Grid", "Neighbors", "Random", "Window"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
_PACKAGES = ("accounting", "bench", "errors", "explain", "export", "knn", "models", "nn", "testing", "train", "types")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f".{name}", __package__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __package__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
