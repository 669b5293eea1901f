"""scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels that come with the package, split by a seed."""

from __future__ import annotations

import torch

from ..errors import missing_extra
from ..train.data.resident import Split

TRAIN, VAL = 1000, 200
"""Images to train on and to watch training with; the other 597 are the test."""


def load_digits_splits(seed: int, *, images: int = 2000) -> dict[str, Split]:
    """Return ``train``, ``val`` and ``test``: images ``(n, 1, 8, 8)`` of mean 0 and variance 1 over the training split.

    ``images`` keeps at most so many of each split. Raises MissingExtraError without scikit-learn.

    >>> {name: len(split.labels) for name, split in load_digits_splits(0).items()}
    {'train': 1000, 'val': 200, 'test': 597}
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "train") from error
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    pixels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[order]
    labels = torch.tensor(digits.target, dtype=torch.int64)[order]
    pixels = (pixels - pixels[:TRAIN].mean()) / pixels[:TRAIN].std()
    ends = {"train": slice(0, TRAIN), "val": slice(TRAIN, TRAIN + VAL), "test": slice(TRAIN + VAL, None)}
    return {name: Split(pixels[part][:images], labels[part][:images]) for name, part in ends.items()}
