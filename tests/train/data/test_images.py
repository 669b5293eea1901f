import io
import pickle
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from convnn import ConvNNError
from convnn.errors import MissingExtraError
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.data.images import ImageData
from convnn.train.data.named import class_names
from convnn.train.data.transforms import transform

TAKES = InputConfig(12)


def files(data, split):
    return data.datasets[split].filenames()


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
            image = Image.new("L", (9, 9))
            return image if self.transform is None else self.transform(image), index % 2

    monkeypatch.setitem(__import__("timm.data.dataset_factory", fromlist=["x"])._TORCH_BASIC_DS, "cifar10", Fake)
    data = ImageData(TrainSettings(data="torch/cifar10", data_dir=str(tmp_path)), takes=TAKES)
    assert data.counts() == {"train": 18, "val": 2, "test": 6}
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


class Reader:
    """Stands for timm's reader of a dataset of Hugging Face."""

    class_to_idx = {"cat": 0, "dog": 1}  # noqa: RUF012

    def __init__(self, contents):
        self.contents = contents

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, index):
        return io.BytesIO(self.contents[index]), index % 2


def test_an_image_of_a_named_dataset_is_never_replaced_by_another(monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9), 32896, np.uint16)).save(buffer, "PNG")
    good = buffer.getvalue()
    contents = [good] * 19 + [good[:40]]
    monkeypatch.setattr("timm.data.dataset.create_reader", lambda *args, **kwargs: Reader(contents))
    settings = TrainSettings(data="hfds/x", val_split="validation", augment="none", channels=1)
    data = ImageData(settings, takes=TAKES)
    assert data.classes == ["cat", "dog"]
    assert data.datasets["train"][0][0].unique().tolist() == pytest.approx([(128 / 255 - 0.5) / 0.5], abs=1e-6)
    with pytest.raises(ConvNNError, match=r"got image 19 of hfds/x, split 'validation' \(.*\); replace it"):
        list(data.val_dataloader())


def test_a_package_that_a_named_dataset_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    with pytest.raises(MissingExtraError, match=r'^datasets is not installed.*pip install "\.\[train\]"'):
        ImageData(TrainSettings(data="hfds/x"), takes=TAKES)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        MissingExtraError, match=r"^tensorflow-datasets is not installed, and tfds/x needs it; run: pip"
    ):
        ImageData(TrainSettings(data="tfds/x"), takes=TAKES)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_stops_the_epoch_and_is_named(images, tmp_path, workers):
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    data = ImageData(TrainSettings(data=str(tmp_path), workers=workers, batch_size=8), takes=TAKES)
    name = files(data, "train")[3]
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ConvNNError) as stopped:
        list(data.train_dataloader())
    assert str(stopped.value).startswith(f"data: expected images that can be read, got '{tmp_path / name}' (")
    assert "\n" not in str(stopped.value)
    assert len(list(data.val_dataloader())) == 1


def test_test_images_are_read_before_a_run(images, tmp_path):
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    data = ImageData(TrainSettings(data=str(tmp_path)), takes=TAKES)
    data.check_test_images()
    (tmp_path / files(data, "test")[0]).write_bytes(b"no image")
    with pytest.raises(ConvNNError, match=r"got '.*\.png' \(no image of a format that Pillow reads\)"):
        data.check_test_images()


@pytest.mark.parametrize(("batch_size", "last"), [(29, 30), (28, 2), (1, 1), (64, 30)])
def test_a_last_training_batch_of_one_image_joins_the_one_before(images, batch_size, last):
    data = ImageData(TrainSettings(data=str(images), batch_size=batch_size, augment="none"), takes=TAKES)
    assert data.counts()["train"] == 30
    loader = data.train_dataloader()
    sizes = [len(labels) for _, labels in loader]
    assert (sum(sizes), sizes[-1], len(loader)) == (30, last, len(sizes))
    assert [y.tolist() for _, y in loader] == [y.tolist() for _, y in data.train_dataloader()]


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
        (lambda p: None, {}, "data: expected one folder of images per class in"),
        (lambda p: (p / "train" / "only").mkdir(parents=True), {}, "data: expected one folder of images per class in"),
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


def test_every_class_is_left_images_to_train_on(tmp_path):
    for name, count in (("cat", 1), ("dog", 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("L", (9, 9)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(
        ConvNNError, match=r"data: expected training images of every class, got none of \['cat'\] after"
    ):
        ImageData(TrainSettings(data=str(tmp_path), val_fraction=0.4, test_fraction=0.2), takes=TAKES)


def test_a_file_is_in_one_split_whatever_its_names(split_images, tmp_path):
    shutil.copytree(split_images, tmp_path, dirs_exist_ok=True)
    first = next((tmp_path / "train" / "0").iterdir())
    (tmp_path / "val" / "0" / "copy.png").symlink_to(first)
    with pytest.raises(
        ConvNNError, match=rf"every file in one split, got 'train/0/{first.name}' in train as 'val/0/copy"
    ):
        ImageData(TrainSettings(data=str(tmp_path)), takes=TAKES)


@pytest.mark.parametrize(
    ("names", "train"),
    [
        (["cat/indoor/1.png", "dog/outdoor/2.png"], 2),
        (["cat/1.png", "dog/2.png", ".ipynb_checkpoints/1.png", "__MACOSX/cat/1.png", "cat/._1.png"], 2),
        (["cat/1.webp", "dog/2.bmp", "dog/3.tif", "dog/4.gif"], 4),
        (["Train/cat/1.png", "Train/dog/2.png"], 2),
    ],
)
def test_classes_are_the_first_folders_and_images_what_pillow_reads(tmp_path, names, train):
    held_out = [f"{split}/{name}/1.png" for split in ("Val", "TEST") for name in ("cat", "dog")]
    inside = [name if name.startswith("Train/") else f"Train/{name}" for name in names]
    for name in [*inside, *held_out]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9)).save(tmp_path / name)
    data = ImageData(TrainSettings(data=str(tmp_path)), takes=TAKES)
    assert data.classes == ["cat", "dog"]
    assert data.counts() == {"train": train, "val": 2, "test": 2}


@pytest.mark.parametrize("mode", ["I;16", "RGB"])
def test_images_are_read_as_a_viewer_shows_them(tmp_path, mode):
    left_to_right = np.linspace(0, 65535, 12).astype(np.uint16)[None].repeat(12, 0)
    stored = Image.fromarray(left_to_right if mode == "I;16" else (left_to_right // 257).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: to be turned a quarter to the right, once
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (stored if mode == "I;16" else stored.convert(mode)).save(tmp_path / "train" / name / "1.png", exif=exif)
    for split in ("val", "test"):
        (tmp_path / split).symlink_to(shutil.copytree(tmp_path / "train", tmp_path / f"copy of {split}"))
    data = ImageData(TrainSettings(data=str(tmp_path)), takes=InputConfig(12, mean=(0.5,) * 3, std=(0.5,) * 3))
    expected = torch.linspace(-1, 1, 12)[:, None].expand(3, 12, 12)
    torch.testing.assert_close(data.datasets["val"][0][0], expected, atol=1 / 127, rtol=0)
