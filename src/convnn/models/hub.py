"""Models on the Hugging Face hub: ``huggingface_hub``'s mixin around a model that ``create_model`` made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import missing_extra
from .config import config_of
from .pretrained import from_pretrained, save_pretrained

try:
    from huggingface_hub import ModelCard, ModelHubMixin
except ImportError as error:
    raise missing_extra("huggingface_hub", "vision") from error

PAPER = "https://arxiv.org/abs/2511.14137"
_CARD = """---
{{ card_data }}
---

# {{ name }}

An image classifier with Convolutional Nearest Neighbors ([paper]({{ paper_url }})), made by convnn as

```python
convnn.models.create_model(**{{ architecture }})
```

and loaded with its weights by

```python
from convnn.models import from_pretrained

model = from_pretrained("{{ repo_id | default("OWNER/NAME", true) }}")
```

{{ about | default("", true) }}
"""


class PretrainedModel(
    nn.Module,
    ModelHubMixin,
    library_name="convnn",
    paper_url=PAPER,
    pipeline_tag="image-classification",
    tags=["convnn", "image-classification"],
    model_card_template=_CARD,
):
    """A created model with ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of ``huggingface_hub``.

    The files are those of ``convnn.models.save_pretrained``, whose names of weights are the inner model's own (timm's),
    and a model card (``README.md``): a folder saved by either way is loaded by the other.

    Args:
        model: of ``create_model``.

    Shapes:
        What ``model`` takes and returns: images ``(B, C, H, W)`` to logits ``(B, num_classes)``.

    Raises:
        ConvNNError: the model is not one that ``create_model`` made.

    Example:
        >>> import tempfile
        >>> from convnn.models import create_model
        >>> wrapped = PretrainedModel(create_model("small_cnn", num_classes=3, layer="hybrid"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = wrapped.save_pretrained(folder)
        ...     same = PretrainedModel.from_pretrained(folder)
        >>> same.model.head.out_features
        3
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config_of(model)  # raises ConvNNError, before training, for a model that could not be saved
        self.model = model

    @property
    def convnn_config(self) -> dict[str, Any]:
        """The inner model's ``config_of``, as on the model itself."""
        return config_of(self.model)

    def forward(self, images: Tensor) -> Tensor:
        """Return the inner model's logits ``(B, num_classes)`` for images ``(B, C, H, W)``."""
        logits: Tensor = self.model(images)
        return logits

    def _save_pretrained(self, save_directory: Path) -> None:
        save_pretrained(self.model, save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        map_location: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        strict: bool = True,
        **download: Any,
    ) -> PretrainedModel:
        model = from_pretrained(model_id, map_location=map_location, dtype=dtype, strict=strict, **download)
        return cls(model).eval()

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Write the model card: what the model is, and how to load it; ``about`` and ``repo_id`` may be given."""
        architecture = config_of(self.model)
        return super().generate_model_card(*args, name=architecture["name"], architecture=repr(architecture), **kwargs)
