"""The splits that are kept with a run, and what is said of data that are no longer the same."""

import json
import shutil

import pytest
import torch
from torch.utils.data import Dataset

from convnn import ConvNNError
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.data.images import ImageData
from convnn.train.data.splits import check_splits, save_splits


def record(folder, **options):
    return ImageData(TrainSettings(data=str(folder), **options), takes=InputConfig(8)).record()


@pytest.fixture
def kept(images, tmp_path):
    """A copy of the images, and the splits kept of it."""
    folder = shutil.copytree(images, tmp_path / "images")
    save_splits(record(folder), tmp_path / "splits.json")
    return folder, tmp_path / "splits.json"


def refusal(folder, path, **options):
    with pytest.raises(ConvNNError) as refused:
        check_splits(record(folder, **options), path)
    return str(refused.value)


def test_the_same_folder_is_taken_and_its_files_are_kept_in_order(kept):
    folder, path = kept
    check_splits(record(folder), path)
    splits = json.loads(path.read_text())["splits"]
    data = ImageData(TrainSettings(data=str(folder)), takes=InputConfig(8))
    for split, dataset in data.datasets.items():
        assert list(splits[split]["files"]) == dataset.filenames()
        assert all(size == (folder / name).stat().st_size for name, size in splits[split]["files"].items())
    (folder / "0" / "notes.txt").write_text("what is no image may come and go")
    check_splits(record(folder), path)


def test_files_that_were_added_removed_or_changed_are_named(kept):
    folder, path = kept
    first, second, third = sorted((folder / "0").iterdir())[:3]
    shutil.copy(first, folder / "1" / "new.png")
    second.unlink()
    third.write_bytes(third.read_bytes() + b"more")
    message = refusal(folder, path)
    assert "1 added ('1/new.png')" in message
    assert f"1 removed ('0/{second.name}')" in message
    assert f"1 of another size ('0/{third.name}')" in message
    assert message.endswith("; restore the data, or start again in another --out")


def test_other_classes_and_other_splits_are_refused(kept, images):
    folder, path = kept
    assert "the same files in other splits" in refusal(folder, path, seed=1)
    (folder / "2").rename(folder / "two")
    assert "other classes: '2', 'two'" in refusal(folder, path)


def test_a_record_that_is_missing_or_was_changed_is_refused(kept, tmp_path):
    folder, path = kept
    whole = path.read_text()
    path.write_text(whole.replace(".png", ".jpg", 1))
    assert "splits.json: expected the file that the run wrote" in refusal(folder, path)
    path.write_text(whole[: len(whole) // 2])
    assert "splits.json: expected the file that the run wrote" in refusal(folder, path)
    path.unlink()
    message = refusal(folder, path)
    assert message.startswith("splits.json: expected the splits of the run to resume, got none in ")
    assert message.endswith("(an earlier version started it); start again in another --out")


def test_a_named_dataset_is_known_by_its_lengths_and_labels(tmp_path, monkeypatch):
    class Fake(Dataset):
        classes = ("cat", "dog")
        total, first = 20, 0

        def __init__(self, root, train, download, transform):
            self.targets = [(Fake.first + index) % 2 for index in range(Fake.total)]

        def __len__(self):
            return Fake.total

    monkeypatch.setitem(__import__("timm.data.dataset_factory", fromlist=["x"])._TORCH_BASIC_DS, "cifar10", Fake)

    def now():
        settings = TrainSettings(data="torch/cifar10", data_dir=str(tmp_path))
        return ImageData(settings, takes=InputConfig(8)).record()

    path = tmp_path / "splits.json"
    save_splits(now(), path)
    check_splits(now(), path)
    Fake.first = 1
    with pytest.raises(ConvNNError, match=r"data: expected the data with which the run in .* was started, got other"):
        check_splits(now(), path)
    Fake.first, Fake.total = 0, 30
    with pytest.raises(ConvNNError, match=r"got other images \(train 27, .*; they were train 18, "):
        check_splits(now(), path)
    Fake.total = 20
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None: torch.arange(n))
    with pytest.raises(ConvNNError, match=r"got other images"):
        check_splits(now(), path)
