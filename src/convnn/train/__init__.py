"""Training of any model, with any layer, on any images (``run``).

Importing this package is cheap: Lightning, timm and torchmetrics are imported by the modules that use them.
"""

from .settings import TrainSettings

__all__ = ["TrainSettings"]
