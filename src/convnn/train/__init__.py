"""Training: the demo on handwritten digits (``demo``), and any model on any images (``run``).

Importing this package is cheap: Lightning, timm and torchmetrics are imported by the modules that use them.
"""

from .settings import DemoSettings, TrainSettings

__all__ = ["DemoSettings", "TrainSettings"]
