"""A folder of small real images, written once for all tests of training."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from .small_runs import use_tiny_runs


def write_digits(folder, *, start, count, classes=(0, 1, 2)):
    digits = load_digits()
    for position in range(start, start + count):
        label = int(digits.target[position])
        if label in classes:
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            pixels = (255 - digits.images[position] * 15).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{position}.png")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Class folders, without splits."""
    folder = tmp_path_factory.mktemp("images")
    write_digits(folder, start=0, count=120)
    return folder


@pytest.fixture(scope="session")
def split_images(tmp_path_factory):
    """Class folders inside train, val and test."""
    folder = tmp_path_factory.mktemp("split_images")
    for split, start, count in (("train", 0, 100), ("val", 100, 60), ("test", 160, 80)):
        write_digits(folder / split, start=start, count=count)
    return folder


@pytest.fixture
def tiny(monkeypatch):
    """Runs on random images that are made in memory."""
    use_tiny_runs(monkeypatch)
