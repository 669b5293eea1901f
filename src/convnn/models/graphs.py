"""``features_only`` by a ``torch.fx`` graph, traced after the layers are replaced: a graph has no layers to replace."""

from __future__ import annotations

from typing import Any

from torch import nn

_KEPT = ("pretrained_cfg", "default_cfg", "_traits", "in_chans", "_convnn_report")


class LateGraph:
    """A stand-in for timm's ``FeatureGraphNet`` that returns the model as it is, to be wrapped later."""

    def __init__(self) -> None:
        self._options: dict[str, Any] = {}

    def __call__(self, model: nn.Module, **options: Any) -> nn.Module:
        """Return the model, and keep timm's arguments for the wrapper."""
        self._options = options
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the wrapper of a model, with the attributes that timm and ``convert`` set on the model."""
        from timm.models import FeatureGraphNet

        wrapper: nn.Module = FeatureGraphNet(model, **self._options)
        for name in _KEPT:
            if hasattr(model, name):
                setattr(wrapper, name, getattr(model, name))
        return wrapper


def late_graph(options: dict[str, Any], layer: str | None) -> LateGraph | None:
    """Return the stand-in for timm's wrapper if options request a graph and layers are replaced, else None."""
    requested = options.get("features_only") and str(options.get("feature_cls")).lower() == "fx"
    return LateGraph() if requested and layer is not None else None
