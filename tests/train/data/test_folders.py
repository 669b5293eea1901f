"""What is found in a folder of images: classes, splits, and what is neither."""

import os
import unicodedata

import pytest
from PIL import Image

from convnn import ConvNNError
from convnn.train.data.folders import read_folder
from convnn.train.data.inventory import describe
from convnn.train.data.listing import list_images

NOTHING = {"train": "train", "val": "", "test": ""}


def put(folder, *names):
    """Write files: a small image where the ending is one of an image's, else text."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in Image.registered_extensions():
            Image.new("RGB", (3, 2), (9, 99, 200)).save(path)
        else:
            path.write_text("text")


def found(folder, **chosen):
    return read_folder(folder, {**NOTHING, **chosen})


def names(folder, split="train", **chosen):
    return [file.name for file in found(folder, **chosen).splits[split]]


def refusal(folder, **chosen):
    with pytest.raises(ConvNNError) as refused:
        found(folder, **chosen)
    assert "\n" not in str(refused.value)
    return str(refused.value).replace(str(folder), "DATA")


def test_the_class_is_the_first_folder_however_deep_the_image(tmp_path):
    put(tmp_path, "cat/indoor/night/1.png", "cat/2.png", "dog/indoor/1.png", "train.txt")
    data = found(tmp_path)
    assert data.classes == ["cat", "dog"]
    assert [(file.name, file.label) for file in data.splits["train"]] == [
        ("cat/2.png", 0),
        ("cat/indoor/night/1.png", 0),
        ("dog/indoor/1.png", 1),
    ]
    assert all(file.size == (tmp_path / file.name).stat().st_size for file in data.splits["train"])


def test_what_systems_leave_behind_is_neither_class_nor_image(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png")
    kept = names(tmp_path)
    put(tmp_path, ".ipynb_checkpoints/1.png", "__MACOSX/cat/1.png", ".git/1.png", "cat/.ipynb_checkpoints/1-copy.png")
    for name in ("cat/._1.png", "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", ".png", "dog/.1.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    assert names(tmp_path) == kept
    assert found(tmp_path).ignored == {"hidden": 10}


@pytest.mark.parametrize("ending", ["webp", "BMP", "tif", "TIFF", "gif", "JPG", "jfif", "ppm", "jp2"])
def test_every_format_that_pillow_reads_is_an_image(tmp_path, ending):
    put(tmp_path, f"cat/1.{ending}", "dog/1.png")
    assert names(tmp_path) == [f"cat/1.{ending}", "dog/1.png"]


def test_what_is_clearly_no_image_is_counted(tmp_path):
    put(tmp_path, "cat/1.png", "cat/1.txt", "cat/1.json", "cat/2.json", "dog/1.png", "dog/README", "labels.csv")
    assert found(tmp_path).ignored == {".txt": 1, ".json": 2, ".csv": 1, "without an ending": 1}


def test_what_may_be_an_image_and_cannot_be_read_is_refused_with_a_count_per_ending(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png")
    for name in ("cat/1.heic", "cat/2.HEIC", "dog/00017", "dog/1.npy", "dog/film.mpg", "dog/page.eps", "dog/all.h5"):
        (tmp_path / name).write_text("?")
    message = refusal(tmp_path)
    for words in ("2 .heic ('cat/1.heic')", "1 without an ending ('dog/00017')", "1 .npy", "1 .mpg", "1 .eps", "1 .h5"):
        assert words in message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "data: expected one folder of images per class in 'DATA', got no image in it; check the path"),
        (["cat/1.png", "dog/1.png", "a.png", "b.jpg"], "in the folder of a class, got 2 beside them: 'a.png', 'b.jpg'"),
        (["train/1.jpg", "train/2.jpg", "val/3.jpg"], "every image of DATA/train in the folder of a class, got 2"),
        (["train/1.jpg", "bus/1.jpg"], "or give --train-split . if train/ is itself a class"),
        (["cat/1.png", "dog/1.png", "bird/notes.txt"], "images in every class folder of DATA, got none in 'bird'"),
        (["cat/1.png"], "data: expected a dataset of at least two named classes, got ['cat']"),
        (["cat/1.png", "Cat/1.png", "dog/1.png"], "distinct names of the classes in DATA, got 'Cat' and 'cat'"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"], "classes in val as in train, got different"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], "got val/ and valid/; leave one of them, or name it with"),
        (["train/a/1.png", "Training/a/1.png"], "one folder for the train split in DATA, got train/ and Training/"),
        (["test/a/1.png", "other/a/1.png"], "a train/ folder beside val/ or test/, got 'DATA'; add train/, or"),
        (["set/train/a/1.png", "set/val/a/1.png", "x/1.png"], "got 'set/train', 'set/val' further down; give --data"),
        (["set/train/a/1.png"], "got 'set/train' further down; give --data DATA/set"),
        (["a/train/1.png", "a/test/1.png", "b/train/1.png", "b/test/1.png"], "put each class into each split"),
    ],
)  # fmt: skip
def test_folders_in_doubt_are_refused(tmp_path, files, message):
    put(tmp_path, *files)
    assert message in refusal(tmp_path)


def test_one_name_written_in_two_ways_is_refused(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    put(tmp_path, f"{composed}/1.png", f"{decomposed}/1.png")
    if len(os.listdir(tmp_path)) == 2:  # some file systems know one name only
        assert "distinct names of the classes" in refusal(tmp_path)


def test_splits_are_recognised_in_any_case(tmp_path):
    put(tmp_path, *(f"{split}/{name}/1.png" for split in ("Training", "VALID", "Test") for name in "ab"))
    assert names(tmp_path) == ["Training/a/1.png", "Training/b/1.png"]
    assert names(tmp_path, "val") == ["VALID/a/1.png", "VALID/b/1.png"]
    assert names(tmp_path, "test") == ["Test/a/1.png", "Test/b/1.png"]


def test_splits_that_are_asked_for(tmp_path):
    put(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val", "valid", "good") for name in "ab"))
    assert names(tmp_path, "val", val="valid") == ["valid/a/1.png", "valid/b/1.png"]
    assert names(tmp_path, "test", val="val", test="good") == ["good/a/1.png", "good/b/1.png"]
    assert "val_split: expected a folder inside DATA, got 'none'" in refusal(tmp_path, val="none")
    assert "test_split: expected another folder than that of val" in refusal(tmp_path, val="val", test="val")
    assert names(tmp_path, train="good", val="val") == ["good/a/1.png", "good/b/1.png"]


def test_a_folder_whose_classes_have_the_names_of_splits(tmp_path):
    put(tmp_path, "train/1.png", "test/1.png", "bus/1.png")
    data = found(tmp_path, train=".")
    assert (data.classes, list(data.splits)) == (["bus", "test", "train"], ["train"])
    put(tmp_path, "held/out/bus/1.png", "held/2.png")
    data = found(tmp_path, train=".", test="held/out")
    assert [file.name for file in data.splits["test"]] == ["held/out/bus/1.png"]
    assert "held/out/bus/1.png" not in [file.name for file in data.splits["train"]]


def test_one_folder_cannot_be_two_splits(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    assert "val_split: expected another folder than that of train, got 'val' for train and for val" in refusal(tmp_path)


def test_what_is_beside_the_splits_is_named_and_not_used(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "extra/a/1.png", "extra/a/x.txt", "poster.png")
    data = found(tmp_path)
    assert data.beside == ["extra/ (1 image)", "1 image beside the folders"]
    assert {split: len(files) for split, files in data.splits.items()} == {"train": 2, "val": 1}


def test_a_split_without_a_class_keeps_the_labels(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png")
    assert [file.label for file in found(tmp_path).splits["val"]] == [2]


def test_files_that_hold_nothing_are_refused_by_name(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a/2.png").write_bytes(b"")
    (tmp_path / "a/3.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "b/4.png")
    message = refusal(tmp_path)
    for words in ("'a/2.png' (empty)", "'a/3.png' (No such file or directory)", "'b/4.png' (no regular file)"):
        assert words in message


def test_links_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "elsewhere", "1.png", "2.png")
    put(tmp_path / "data", "a/1.png")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/itself.png").symlink_to(tmp_path / "data/a/1.png")
    data = found(tmp_path / "data")
    assert [file.name for file in data.splits["train"]] == ["a/1.png", "a/itself.png", "b/1.png", "b/2.png"]
    assert data.ignored == {"linked to a folder above": 1}


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "b/1.png")
    original = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert refusal(tmp_path) == (
        "data: expected a folder that can be read, got 'DATA/b' (Permission denied); check its name and its permissions"
    )


def test_the_order_is_that_of_the_names(tmp_path, monkeypatch):
    put(tmp_path, "b10/1.png", "b9/10.png", "b9/9.png", "B1/x.png", "²/1.png")
    expected = ["B1/x.png", "b9/9.png", "b9/10.png", "b10/1.png", "²/1.png"]
    assert list(list_images(tmp_path).files) == expected
    original = os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Backwards(sorted(original(path), key=lambda e: e.name)[::-1]))
    assert list(list_images(tmp_path).files) == expected


def test_the_start_line_tells_classes_images_and_what_was_left_out(tmp_path):
    put(
        tmp_path,
        "train/a/1.png",
        "train/a/2.png",
        "train/b\nc/1.png",
        "val/a/1.png",
        "train/a/.x",
        "train/a/x.txt",
        "x/1.png",
    )
    data = found(tmp_path)
    lines = describe(data.classes, {"train": 3, "val": 1}, data)
    assert lines == [
        "2 classes: a, b\\nc",
        "  train  3 images: a 2, b\\nc 1",
        "  val    1 image: a 1, b\\nc 0",
        "Ignored: 1 hidden, 1 .txt",
        "Not used: x/ (1 image)",
    ]


def test_long_lists_of_classes_are_cut(tmp_path):
    put(tmp_path, *(f"c{number}/1.png" for number in range(13)), "c12/2.png")
    data = found(tmp_path)
    first, second = describe(data.classes, {"train": 14}, data)
    assert first.startswith("13 classes: c0, c1, ")
    assert first.endswith("c9, ... and 3 more")
    assert second.endswith("c9 1, ... (1 to 2 of each class)")


def test_runs_beside_the_classes_are_no_class(tmp_path):
    put(
        tmp_path,
        "a/1.png",
        "b/1.png",
        "runs/default/settings.yaml",
        "runs/default/result.json",
        "runs/default/last.ckpt",
    )
    data = found(tmp_path)
    assert data.classes == ["a", "b"]
    assert data.ignored["with runs of convnn train"] == 1
