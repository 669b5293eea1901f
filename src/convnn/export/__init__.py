"""Models as files that run without convnn: ONNX, and programs of ``torch.export``."""

from .program import Exported, export
from .settings import ExportSettings

__all__ = ["ExportSettings", "Exported", "export"]
