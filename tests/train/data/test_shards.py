"""Images in shards: found by an index, read in any order, and named where something is wrong."""

import pickle
import tarfile

import numpy as np
import pytest
import torch

from convnn import ConvNNError
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.data import open_data

from .conftest import encoded, pixels_of, samples_of, write_shard
from .test_parquet import everything

TAKES = InputConfig(8, mean=(0.5,) * 3, std=(0.5,) * 3)


def open_(folder, **options):
    settings = {"augment": "none", "resident": "no", "progress": False, "batch_size": 7, **options}
    return open_data(TrainSettings(**{"data": str(folder), **settings}), TAKES)


def test_every_image_is_read_once_an_epoch_in_an_order_of_its_own(shards):
    data = open_(shards)
    assert data.counts() == {"train": 60, "val": 9, "test": 9}
    assert data.classes == [0, 1, 2]
    assert data.parts["train"].source.name(21) == "train/0001.tar/00021.png"
    images, labels = everything(data.train_dataloader())
    bytes_ = ((images * 0.5 + 0.5) * 255).round().to(torch.uint8)
    found = {image.numpy().tobytes(): int(label) for image, label in zip(bytes_, labels, strict=True)}
    expected = {np.ascontiguousarray(pixels_of(n).transpose(2, 0, 1)).tobytes(): n % 3 for n in range(60)}
    assert found == expected
    assert labels.tolist() != [n % 3 for n in range(60)]
    held, _ = everything(open_(shards, resident="yes").train_dataloader())
    assert torch.equal(held, bytes_)


def test_workers_and_positions_change_nothing(shards):
    whole = list(open_(shards, augment="strong").train_dataloader())
    loader = open_(shards, augment="strong", workers=2).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 5})
    rest = list(loader)
    assert len(rest) == len(whole) - 5
    assert all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(rest, whole[5:], strict=True))


def test_shards_by_the_words_of_their_names_and_by_timm_s_name(tmp_path):
    for split, first in (("train", 0), ("validation", 30)):
        write_shard(tmp_path / "tiny" / f"imagenet1k-{split}-0000.tar", samples_of(range(first, first + 30)))
    (tmp_path / "tiny" / "classes.txt").write_text("cat\ndog\nowl\n")
    for data in (open_(tmp_path / "tiny"), open_("wds/tiny", data_dir=str(tmp_path))):
        assert data.counts() == {"train": 27, "val": 30, "test": 3}
        assert data.classes == ["cat", "dog", "owl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConvNNError, match=r"^data_dir: expected a folder with shards \(\*\.tar\), got"):
        open_("wds/none", data_dir=str(tmp_path / "empty"))


def test_labels_in_json_folders_in_names_and_other_members(tmp_path):
    samples = {
        f"n0/{n}": {"json": b'{"label": %d}' % (n % 2), "seg.jpg.txt": b"x", "JPEG": encoded(pixels_of(n), "JPEG")}
        for n in range(10)
    }
    samples["n0/._1"] = {"png": b"what a file manager leaves"}
    write_shard(tmp_path / "a.tar", samples)
    data = open_(tmp_path)
    source = data.parts["train"].source
    assert (len(source), source.labels.tolist()) == (10, [0, 1] * 5)
    assert source.read(3, "RGB")[0].size == (8, 8)
    assert pickle.loads(pickle.dumps(source)).read(3, "RGB")[1] == 1


BROKEN = {
    "no label": lambda s: s["00003"].pop("cls"),
    "no image": lambda s: s["00003"].pop("png"),
    "no number": lambda s: s["00003"].update(cls=b"cat"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_samples_that_lack_something_are_named_and_can_be_skipped(tmp_path, change):
    samples = samples_of(range(30))
    change(samples)
    write_shard(tmp_path / "a.tar", samples)
    with pytest.raises(ConvNNError, match=r"^data: expected shards of images with labels, got 'a.tar/00003' \(.*skip$"):
        open_(tmp_path)
    data = open_(tmp_path, bad_images="skip")
    assert list(data.skipped) == ["a.tar/00003"]
    assert sum(data.counts().values()) == 29


def test_shards_that_are_cut_short_or_compressed(tmp_path):
    write_shard(tmp_path / "a.tar", samples_of(range(30)))
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConvNNError, match=r"got 'a.tar' \(the rest of it cannot be read: unexpected end"):
        open_(tmp_path)
    data = open_(tmp_path, bad_images="skip")
    assert "a.tar" in data.skipped
    assert 10 <= sum(data.counts().values()) < 20
    assert sum(len(labels) for _, labels in data.train_dataloader()) == data.counts()["train"]
    (tmp_path / "a.tar").unlink()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(ConvNNError, match=r"shards that are not compressed in .*, got 'a.tar.gz'; unpack it"):
        open_(tmp_path)


def test_a_shard_that_vanishes_is_named(shards, tmp_path):
    write_shard(tmp_path / "a.tar", samples_of(range(30)))
    data = open_(tmp_path)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ConvNNError, match=r"^data: expected shards that can be read, got '.*a.tar' \(No such file"):
        list(data.train_dataloader())
