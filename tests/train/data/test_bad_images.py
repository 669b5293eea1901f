"""Messy folders: what is read right, what is named and counted, and what ``--bad-images`` makes of it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from convnn import ConvNNError
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.data import open_data
from convnn.train.data.inventory import describe
from convnn.train.settings import TrainSettings as Settings

from .conftest import encoded, pixels_of, samples_of, write_parquet, write_shard
from .test_parquet import everything

TAKES = InputConfig(8, mean=(0.5,) * 3, std=(0.5,) * 3)
SKIP = {"bad_images": "skip"}


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def messy(folder):
    """Write good images of every awkward kind, and damaged ones; return how many there are of each."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    good = {
        "16 bits.png": saved(Image.fromarray(np.arange(63, dtype=np.uint16).reshape(9, 7) * 1000), "PNG"),
        "inks.jpg": saved(noise.convert("CMYK"), "JPEG"),
        "palette.gif": saved(noise.convert("P"), "GIF"),
        "glass.png": saved(noise.convert("RGBA"), "PNG"),
        "turned.jpg": saved(noise, "JPEG", exif=turned),
        "film.gif": saved(noise, "GIF", save_all=True, append_images=[noise.rotate(90)]),
        "näme with ' and \".png": saved(noise, "PNG"),
        "a.b.c.JPEG": saved(noise, "JPEG"),
        "looks like.png": saved(noise, "JPEG"),
    }
    whole = saved(noise.resize((64, 64)), "JPEG")
    bad = {"truncated.jpg": whole[: len(whole) // 2], "empty.png": b"", "text.png": b"no image", "camera.heic": b"ftyp"}
    for name, content in (good | bad).items():
        for label in ("cat", "dog"):
            for split in ("train", "test"):
                path = folder / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    path = folder / "val" / "dog" / "good.png"  # no cat in validation
    path.parent.mkdir(parents=True)
    path.write_bytes(good["glass.png"])
    return len(good), sorted(bad)


def open_(folder, **options):
    told = []
    settings = TrainSettings(data=str(folder), **{"augment": "none", "progress": False, "batch_size": 5, **options})
    return open_data(settings, TAKES, say=told.append), told


@pytest.mark.parametrize("options", [{}, {"resident": "no"}, {"resident": "no", "workers": 2, "augment": "strong"}])
def test_a_messy_folder_is_read_and_what_is_damaged_is_named_and_counted(tmp_path, options):
    good, bad = messy(tmp_path)
    data, told = open_(tmp_path, **SKIP, **options)
    lines = describe(data.classes, data.counts(), data.folder)
    assert any(line.startswith("Skipped: 8 that cannot be read: 'train/cat/empty.png' (empty)") for line in lines)
    assert any("val    1 image: cat 0, dog 1" in line for line in lines)
    trained = [labels for _, labels in data.train_dataloader()]
    assert torch.cat(trained).bincount().tolist() == [good, good]
    tested = torch.cat([labels for _, labels in data.test_dataloader()])
    assert tested.bincount().tolist() == [good, good]
    data.teardown("fit")
    expected = {f"{split}/{label}/{name}" for split in ("train", "test") for label in ("cat", "dog") for name in bad}
    assert set(data.skipped) == expected
    assert "truncated" in data.skipped["train/cat/truncated.jpg"]
    said = " ".join(told)
    assert "'train/cat/truncated.jpg' (image file is truncated" in said
    assert "empty.png" not in said, "said at the start"
    again = len(told)
    list(data.train_dataloader())
    data.teardown("fit")
    assert len(told) == again, "each is named once"


def test_images_left_out_are_counted_as_such(tmp_path):
    good, _ = messy(tmp_path)
    data, _ = open_(tmp_path, **SKIP)
    list(data.train_dataloader())
    assert data.resident
    assert data.counts()["train"] == 2 * good


@pytest.mark.parametrize("options", [{}, {"resident": "no"}, {"resident": "no", "workers": 1}])
def test_by_default_a_damaged_image_stops_the_run(tmp_path, options):
    messy(tmp_path)
    with pytest.raises(ConvNNError, match=r"files that cannot: 2 .heic \('cat/camera.heic'\)"):
        open_(tmp_path, **options)
    for path in tmp_path.rglob("camera.heic"):
        path.unlink()
    with pytest.raises(ConvNNError, match=r"got 'cat/empty.png' \(empty\), 'dog/empty.png' \(empty\)"):
        open_(tmp_path, **options)
    for path in tmp_path.rglob("empty.png"):
        path.unlink()
    data, _ = open_(tmp_path, **options)
    with pytest.raises(ConvNNError, match=r"got '.*(text\.png|truncated\.jpg)' \(") as stopped:
        list(data.train_dataloader())
    assert "\n" not in str(stopped.value)


def test_a_batch_loses_its_damaged_images_and_takes_no_others(tmp_path):
    messy(tmp_path)
    data, _ = open_(tmp_path, resident="no", **SKIP)
    loader = data.train_dataloader()
    expected = []
    for number in range(len(loader)):
        names = [data.parts["train"].source.name(index) for index in loader.batches[number].tolist()]
        expected.append([int("/dog/" in name) for name in names if "text" not in name and "truncated" not in name])
    assert [labels.tolist() for _, labels in loader] == expected
    assert {len(batch) for batch in expected} != {5}


def test_a_batch_without_any_good_image_is_an_error(tmp_path):
    for label in ("cat", "dog"):
        for number in range(4):
            path = tmp_path / label / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no image")
    data, _ = open_(tmp_path, **SKIP)
    with pytest.raises(ConvNNError, match=r"^data: expected a batch with an image that can be read, got none of"):
        list(data.train_dataloader())


def test_a_class_without_images_is_left_out_and_named(tmp_path):
    for label in ("cat", "dog"):
        path = tmp_path / label / "1.png"
        path.parent.mkdir()
        path.write_bytes(encoded(pixels_of(0)))
        path.with_name("2.png").write_bytes(encoded(pixels_of(1)))
    (tmp_path / "ghost").mkdir()
    with pytest.raises(ConvNNError, match=r"images in every class folder of .*, got none in 'ghost'"):
        open_(tmp_path)
    data, _ = open_(tmp_path, **SKIP)
    assert data.classes == ["cat", "dog"]
    assert data.skipped == {"ghost/": "a class without images"}


def read_all(data):
    """Return how many images the three splits give."""
    loaders = data.train_dataloader, data.val_dataloader, data.test_dataloader
    return sum(len(everything(loader())[1]) for loader in loaders)


@pytest.mark.parametrize("resident", ["yes", "no"])
@pytest.mark.parametrize("kind", ["parquet", "shards"])
def test_damaged_images_in_parquet_files_and_shards(tmp_path, kind, resident):
    if kind == "parquet":
        contents = [encoded(pixels_of(n)) for n in range(30)]
        contents[4] = b""
        write_parquet(tmp_path / "train.parquet", range(30), content=contents)
    else:
        samples = samples_of(range(30))
        samples["00004"]["png"] = b"no image"
        write_shard(tmp_path / "train.tar", samples)
    data, told = open_(tmp_path, resident=resident, **SKIP)
    seen = read_all(data)
    data.teardown("fit")
    assert seen == 29
    assert len(data.skipped) == len(told) == 1
    data, _ = open_(tmp_path, resident=resident)
    with pytest.raises(ConvNNError, match=r"^data: expected images that can be read, got .*(image 4|00004)"):
        read_all(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_images": "ignore"}, "bad_images: expected one of 'stop', 'skip', got 'ignore'"),
        ({"resident": "ram"}, "resident: expected one of 'auto', 'yes', 'no', got 'ram'"),
        ({"resident": "yes", "augment": "strong"}, r"resident: expected auto or no with augment strong .* got 'yes'"),
        ({"normalize": "dat"}, "normalize: expected one of 'model', 'data', got 'dat'; did you mean 'data'"),
        ({"pad_crop": -1}, "pad_crop: expected a whole number of at least 0, got -1"),
        ({"cutout": 1.5}, "cutout: expected a whole number of at least 0, got 1.5"),
        ({"flip": "yes"}, "flip: expected true or false, got 'yes'"),
    ],
)
def test_wrong_options_are_named_before_anything_is_read(tmp_path, options, message):
    with pytest.raises(ConvNNError, match=f"^{message}") as refused:
        Settings(data=str(tmp_path), **options).check()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("options", "name"), [({"pad_crop": 8}, "pad_crop"), ({"cutout": 9}, "cutout")])
def test_pixels_that_the_images_do_not_have(images, options, name):
    with pytest.raises(ConvNNError, match=rf"^{name}: expected .* got {options[name]} for images of 8 x 8; lower it"):
        open_(images, **options)
