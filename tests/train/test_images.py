import pickle

import pytest
import torch
from PIL import Image

from convnn import ConvNNError
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.images import ImageData, class_names, transform

TAKES = InputConfig(12)


def files(data, split):
    dataset = data.datasets[split]
    if hasattr(dataset, "indices"):
        names = dataset.dataset.filenames()
        return [names[i] for i in dataset.indices]
    return dataset.filenames()


def test_a_folder_without_splits_is_cut_by_the_seed(images):
    data = ImageData(TrainSettings(data=str(images)), takes=TAKES)
    splits = {name: set(files(data, name)) for name in ("train", "val", "test")}
    total = len(list(images.rglob("*.png")))
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == total
    assert len(splits["val"]) == len(splits["test"]) == round(0.1 * total)
    again = ImageData(TrainSettings(data=str(images)), takes=TAKES)
    other = ImageData(TrainSettings(data=str(images), seed=1), takes=TAKES)
    assert set(files(again, "val")) == splits["val"] != set(files(other, "val"))
    assert data.classes == ["0", "1", "2"]


def test_splits_that_exist_are_used(split_images):
    data = ImageData(TrainSettings(data=str(split_images)), takes=TAKES)
    for split in ("train", "val", "test"):
        assert data.counts()[split] == len(list((split_images / split).rglob("*.png")))
    image, label = data.datasets["val"][0]
    assert image.shape == (3, 12, 12)
    assert label == 0


def test_a_missing_split_is_cut_from_train(split_images, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(split_images / split)
    data = ImageData(TrainSettings(data=str(tmp_path), val_fraction=0.25), takes=TAKES)
    train = len(list((split_images / "train").rglob("*.png")))
    assert data.counts()["val"] == round(0.25 * train)
    assert data.counts()["train"] + data.counts()["val"] == train
    assert set(files(data, "train")).isdisjoint(files(data, "val"))


def test_cut_splits_are_not_augmented(images):
    data = ImageData(TrainSettings(data=str(images), augment="strong"), takes=TAKES)
    assert torch.equal(data.datasets["val"][0][0], data.datasets["val"][0][0])


@pytest.mark.parametrize("augment", ["none", "light", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_become_tensors(augment, channels):
    settings = TrainSettings(augment=augment, channels=channels)
    for training in (True, False):
        steps = pickle.loads(pickle.dumps(transform(settings, takes=TAKES, training=training)))
        for mode in ("L", "RGB", "RGBA", "P"):
            assert steps(Image.new(mode, (20, 15))).shape == (channels, 12, 12)


def test_loaders_shuffle_training_alone(images):
    data = ImageData(TrainSettings(data=str(images), batch_size=8, augment="none"), takes=TAKES)
    first, again = ([y.tolist() for _, y in data.train_dataloader()] for _ in range(2))
    assert first == again != sorted(first)
    labels = torch.cat([y for _, y in data.val_dataloader()]).tolist()
    assert labels == sorted(labels)
    assert sum(len(y) for _, y in data.test_dataloader()) == data.counts()["test"]


def test_a_dataset_of_torchvision_through_timm(tmp_path, monkeypatch):
    class Fake(torch.utils.data.Dataset):
        classes = ("cat", "dog")

        def __init__(self, root, train, download, transform):
            self.train, self.transform = train, transform

        def __len__(self):
            return 20 if self.train else 6

        def __getitem__(self, index):
            return self.transform(Image.new("L", (9, 9))), index % 2

    monkeypatch.setitem(__import__("timm.data.dataset_factory", fromlist=["x"])._TORCH_BASIC_DS, "cifar10", Fake)
    data = ImageData(TrainSettings(data="torch/cifar10", data_dir=str(tmp_path)), takes=TAKES)
    assert data.counts() == {"train": 18, "test": 6, "val": 2}
    assert data.classes == ["cat", "dog"]
    assert data.datasets["test"][0][0].shape == (3, 12, 12)


def test_streams_need_splits_by_name(monkeypatch):
    class Stream(torch.utils.data.IterableDataset):
        classes = ("a", "b")
        transform = None

        def __iter__(self):
            yield from ()

    monkeypatch.setattr("timm.data.create_dataset", lambda *args, **kwargs: Stream())
    with pytest.raises(
        ConvNNError, match="data: expected splits by name for a dataset that is a stream, got no val; give"
    ):
        ImageData(TrainSettings(data="tfds/mnist"), takes=TAKES)
    named = ImageData(TrainSettings(data="tfds/mnist", val_split="train[90%:]"), takes=TAKES)
    assert set(named.datasets) == {"train", "val", "test"}


def test_classes_are_read_from_hugging_face_features():
    class Label:
        names = ("x", "y")

    class Features:
        features = {"label": Label()}  # noqa: RUF012

    class Reader:
        dataset = Features()

    class Data:
        reader = Reader()

    assert class_names(Data()) == ["x", "y"]


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda p: None, {}, "data: expected images that timm can read"),
        (lambda p: (p / "train" / "only").mkdir(parents=True), {}, "data: expected images that timm can read"),
        (lambda p: (p / "test").mkdir(), {}, r"data: expected a train/ folder beside val/ or test/"),
        (lambda p: None, {"test_split": "held_out"}, "test_split: expected a folder inside .* got 'held_out'"),
        (lambda p: None, {"data": "torch/cifar11"}, "data: expected images that timm can read, got 'torch/cifar11'"),
        (
            lambda p: None,
            {"data": "torch/cifar10"},
            "data: expected images that timm can read, got 'torch/cifar10'.*--download",
        ),
    ],
)
def test_data_that_cannot_be_read(tmp_path, make, settings, message):
    make(tmp_path)
    values = {"data": str(tmp_path), "data_dir": str(tmp_path), **settings}
    with pytest.raises(ConvNNError, match=message):
        ImageData(TrainSettings(**values), takes=TAKES)


def test_one_class_is_not_enough(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "cat" / "0.png")
    with pytest.raises(ConvNNError, match=r"data: expected a dataset of at least two named classes, got \['cat'\]"):
        ImageData(TrainSettings(data=str(tmp_path)), takes=TAKES)


def test_splits_must_have_the_same_classes(tmp_path):
    for split, classes in (("train", "ab"), ("test", "ac")):
        for name in classes:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (9, 9)).save(tmp_path / split / name / "0.png")
    with pytest.raises(ConvNNError, match=r"data: expected the same classes in test as in train, got .*\['b', 'c'\]"):
        ImageData(TrainSettings(data=str(tmp_path)), takes=TAKES)
