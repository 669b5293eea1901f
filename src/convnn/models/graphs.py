"""``features_only`` by a ``torch.fx`` graph, traced after layers were swapped: a graph has no attention to swap."""

from __future__ import annotations

from typing import Any

from torch import nn

_KEPT = ("pretrained_cfg", "default_cfg", "_traits", "in_chans", "_convnn_report")


class LateGraph:
    """What timm calls in place of its ``FeatureGraphNet``: the model comes back as it is, to be wrapped later."""

    def __init__(self) -> None:
        self._options: dict[str, Any] = {}

    def __call__(self, model: nn.Module, **options: Any) -> nn.Module:
        """Return the model, and remember what timm would make the wrapper with."""
        self._options = options
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the wrapper around a model, which has what timm and ``convert`` wrote on the model."""
        from timm.models import FeatureGraphNet

        made: nn.Module = FeatureGraphNet(model, **self._options)
        for name in _KEPT:
            if hasattr(model, name):
                setattr(made, name, getattr(model, name))
        return made


def late_graph(options: dict[str, Any], layer: str | None) -> LateGraph | None:
    """Return what stands for timm's wrapper where options ask for a graph and layers are swapped, None elsewhere."""
    asked = options.get("features_only") and str(options.get("feature_cls")).lower() == "fx"
    return LateGraph() if asked and layer is not None else None
