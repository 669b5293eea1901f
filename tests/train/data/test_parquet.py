"""Images in parquet files and of torchvision: which split they are in, and that their pixels arrive as they are."""

import pickle

import numpy as np
import pytest
import torch

from convnn import ConvNNError
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.data import open_data
from convnn.train.data.inventory import describe

from .conftest import NAMES, pixels_of, write_parquet

TAKES = InputConfig(8, mean=(0.5, 0.25, 0.5), std=(0.25, 0.5, 0.5))


def open_(folder, **options):
    return open_data(TrainSettings(data=str(folder), **{"augment": "none", "progress": False, **options}), TAKES)


def everything(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_the_hub_s_layout_is_read_and_validation_is_cut_by_class(cifar):
    data = open_(cifar, val_fraction=0.2)
    assert data.counts() == {"train": 48, "val": 12, "test": 12}
    assert data.classes == NAMES
    assert describe(data.classes, data.counts())[0] == "3 classes: cat, dog, owl"
    assert data.resident
    images, labels = everything(data.val_dataloader())
    assert labels.bincount().tolist() == [4, 4, 4]
    assert images.dtype == torch.uint8
    tested, _ = everything(data.test_dataloader())
    expected = np.stack([pixels_of(number) for number in range(100, 112)]).transpose(0, 3, 1, 2)
    assert np.array_equal(tested.numpy(), expected)
    trained = {image.numpy().tobytes() for image in everything(data.train_dataloader())[0]}
    watched = {image.numpy().tobytes() for image in images}
    assert len(trained | watched) == 60
    assert everything(open_(cifar, val_fraction=0.2, seed=1).val_dataloader())[1].bincount().tolist() == [4, 4, 4]


def test_images_in_memory_and_read_by_workers_are_the_same(cifar):
    held, read = open_(cifar), open_(cifar, resident="no", workers=1)
    assert (held.resident, read.resident) == (True, False)
    for split in ("train_dataloader", "val_dataloader", "test_dataloader"):
        images, labels = everything(getattr(held, split)())
        others, same = everything(getattr(read, split)())
        normalized, _ = held.on_after_batch_transfer((images, labels), 0)
        torch.testing.assert_close(normalized, others, atol=1e-6, rtol=1e-6)
        assert torch.equal(labels, same)


def test_images_are_decoded_once(cifar, monkeypatch):
    data = open_(cifar)
    everything(data.train_dataloader())
    monkeypatch.setattr(type(data.parts["train"].source), "read", lambda *_: pytest.fail("decoded once more"))
    everything(data.train_dataloader())


def test_the_data_s_own_mean_and_deviation(cifar):
    for options in ({}, {"resident": "no"}):
        data = open_(cifar, normalize="data", **options)
        images, labels = everything(data.train_dataloader())
        if images.dtype == torch.uint8:
            images, _ = data.on_after_batch_transfer((images, labels), 0)
        assert images.mean((0, 2, 3)).abs().max() < 1e-5
        assert (images.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
        assert data.takes.size == 8


def test_other_columns_numbers_for_classes_and_grey_images(tmp_path):
    for split, numbers in (("train", range(30)), ("validation", range(30, 39)), ("test", range(40, 46))):
        path = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        write_parquet(path, numbers, label="fine_label", image="image", named=False)
    data = open_(tmp_path, channels=1)
    assert data.classes == [0, 1, 2]
    assert data.counts() == {"train": 30, "val": 9, "test": 6}
    assert data.test_dataloader().split.images.shape == (6, 1, 8, 8)


def test_the_record_knows_other_files_and_other_cuts(cifar, tmp_path):
    record = open_(cifar).record()
    assert record == open_(cifar).record()
    assert record["splits"]["val"] != open_(cifar, seed=1).record()["splits"]["val"]
    write_parquet(tmp_path / "train-0.parquet", range(61))
    assert record["splits"]["train"]["fingerprint"] != open_(tmp_path).record()["splits"]["train"]["fingerprint"]


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (lambda p: (p / "train.parquet").write_bytes(b"PAR1 no"), {}, r"files that can be read, got '.*train\."),
        (lambda p: write_parquet(p / "t.parquet", range(6), label="no"), {}, r"column of .*'label'.* got \['img', 'n"),
        (lambda p: write_parquet(p / "test.parquet", range(6)), {}, "files of a training split in .* got none"),
        (lambda p: write_parquet(p / "train_val.parquet", range(6)), {}, "one split, got 'train_val.parquet' for "),
        (lambda p: write_parquet(p / "t.parquet", [0, 3, 6], named=False), {}, r"two named classes, got \[0\]"),
        (lambda p: write_parquet(p / "t.parquet", range(9)), {"val_split": "held"}, "^val_split: .* got 'held'"),
        (lambda p: write_parquet(p / "t.parquet", range(9), content=["a"] * 9), {}, "'img', got struct<bytes: string"),
    ],
)
def test_files_in_doubt_are_named(tmp_path, write, options, message):
    write(tmp_path)
    with pytest.raises(ConvNNError, match=message) as refused:
        open_(tmp_path, **options)
    assert "\n" not in str(refused.value)


def test_files_beside_the_splits_and_labels_without_a_class_are_refused(cifar, tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 3, 4], named=False)
    write_parquet(tmp_path / "test-0.parquet", [2], named=False)
    with pytest.raises(ConvNNError, match=r"labels below the number of classes, 2, got 2 in test"):
        open_(tmp_path)
    write_parquet(tmp_path / "more.parquet", [2])
    with pytest.raises(ConvNNError, match=r"all files in a split, got 'more.parquet' beside train, test"):
        open_(tmp_path)


def test_files_that_are_too_large_name_the_ways_out(cifar, monkeypatch):
    monkeypatch.setattr("convnn.train.data.parquet.LIMIT", 100)
    with pytest.raises(ConvNNError, match=r"at most 0 GiB in .*; write the images as shards .* or give .* hfds/"):
        open_(cifar)


def test_memory_has_a_limit(cifar, monkeypatch):
    monkeypatch.setattr("convnn.train.data.decode_once.LIMIT", 72 * (3 * 64 + 8) - 1)
    assert not open_(cifar).resident
    monkeypatch.setattr("convnn.train.data.decode_once.LIMIT", 72 * (3 * 64 + 8))
    assert open_(cifar).resident
    assert open_(cifar, augment="light").resident
    assert not open_(cifar, augment="strong").resident
    larger = open_data(TrainSettings(data=str(cifar), augment="light"), InputConfig(12))
    assert not larger.resident, "light crops the images as they are stored"


def write_cifar10(root):
    """Write CIFAR-10 as its authors' archive has it, with 20 images a file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 256, (120, 3072), dtype=np.uint8)
    for part, name in enumerate(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    ):
        entry = {"data": rows[20 * part : 20 * part + 20], "labels": [n % 10 for n in range(20)]}
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    return rows.reshape(-1, 3, 32, 32)


def test_torchvision_s_copy_is_kept_in_memory(tmp_path, monkeypatch):
    rows = write_cifar10(tmp_path)
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    settings = TrainSettings(data="torch/cifar10", data_dir=str(tmp_path), augment="light", progress=False)
    data = open_data(settings, InputConfig(32))
    assert data.resident
    assert (data.counts(), len(data.classes)) == ({"train": 90, "val": 10, "test": 20}, 10)
    images, labels = everything(data.test_dataloader())
    assert np.array_equal(images.numpy(), rows[100:])
    assert labels.bincount().tolist() == [2] * 10
    assert everything(data.val_dataloader())[1].bincount().tolist() == [1] * 10
