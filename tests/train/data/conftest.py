"""Small data in the layouts that a run reads: parquet files of the hub, shards of WebDataset."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

NAMES = ["cat", "dog", "owl"]


def pixels_of(number, size=8):
    """Return an image that says its number: noise, and every third one of the same class brighter by a step."""
    noise = np.random.default_rng(number).integers(0, 200, (size, size, 3))
    return (noise + 25 * (number % 3)).astype(np.uint8)


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path, numbers, *, label="label", image="img", named=True, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    contents = content or [encoded(pixels_of(number)) for number in numbers]
    images = pyarrow.array([{"bytes": each, "path": None} for each in contents])
    table = pyarrow.table({image: images, label: [number % 3 for number in numbers]})
    if named:
        features = {image: {"_type": "Image"}, label: {"names": NAMES, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, row_group_size=7)


def write_shard(path, samples):
    """Write a shard; a sample is a dictionary of endings and contents, by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, members in samples.items():
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))


def samples_of(numbers):
    return {f"{n:05}": {"png": encoded(pixels_of(n)), "cls": str(n % 3).encode()} for n in numbers}


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """CIFAR's layout on the hub: two files of training images, one of test images."""
    folder = tmp_path_factory.mktemp("cifar")
    write_parquet(folder / "train-00000-of-00002.parquet", range(30))
    write_parquet(folder / "train-00001-of-00002.parquet", range(30, 60))
    write_parquet(folder / "test-00000-of-00001.parquet", range(100, 112))
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Shards in folders of their splits."""
    folder = tmp_path_factory.mktemp("shards")
    for part in range(3):
        write_shard(folder / "train" / f"{part:04}.tar", samples_of(range(20 * part, 20 * part + 20)))
    write_shard(folder / "val" / "0000.tar", samples_of(range(100, 109)))
    write_shard(folder / "test" / "0000.tar", samples_of(range(200, 209)))
    return folder
