"""What can be exported: models, saved folders, runs of ``convnn train`` and their checkpoints."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from convnn import HybridConvNN2d, cli
from convnn.errors import ConvNNError
from convnn.export import export
from convnn.export.source import load_source
from convnn.models import create_model, from_pretrained, save_pretrained
from convnn.models.hub import PretrainedModel
from convnn.train.run import load_run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("small_cnn", num_classes=3, layer="hybrid", image_size=8).eval()
    return model, save_pretrained(model, tmp_path_factory.mktemp("saved") / "small")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs on two shades of grey."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("run")
    for name, shade in (("dark", 30), ("light", 220)):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = np.full((8, 8), shade + number, np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    out = folder / "run"
    options = {"data": folder / "images", "out": out, "layer": "hybrid", "candidates": "random:20", "image-size": 8,
               "channels": 1, "epochs": 2, "normalize": "data", "progress": "false", "accelerator": "cpu"}  # fmt: skip
    assert cli.main(["train", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]) == 0
    return out


def test_a_saved_folder(saved, tmp_path) -> None:
    model, folder = saved
    source = load_source(folder)
    assert (source.name, source.channels, source.size) == ("small_cnn", 3, 8)
    exported = export(folder, tmp_path / "model.pt2", format="torch-export")
    assert exported.shape == (None, 3, 8, 8)
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(torch.export.load(exported.path).module()(images), model(images))


def test_a_run_is_its_best_epoch(run) -> None:
    source = load_source(run)
    best = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in source.model.state_dict().items())
    assert (source.name, source.channels, source.size) == ("small_cnn", 1, 8)
    assert json.loads(source.notes["classes"]) == ["dark", "light"]
    assert json.loads(source.notes["architecture"])["candidates"] == "random:20"
    # Two shades of grey, 30 to 39 and 220 to 229, of which the run measured those that it trained on.
    assert json.loads(source.notes["mean"]) == pytest.approx([129.5 / 255], abs=0.04)
    assert json.loads(source.notes["std"]) == pytest.approx([95 / 255], abs=0.02)
    assert not source.model.training


def test_a_checkpoint_of_a_run(run) -> None:
    last = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    model = load_source(run / "last.ckpt").model
    assert all(torch.equal(value, last[f"model.{name}"]) for name, value in model.state_dict().items())


def test_a_run_can_be_saved_as_a_model(run, tmp_path) -> None:
    model = load_run(run)[0]
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(from_pretrained(save_pretrained(model, tmp_path))(images), model(images))


def test_a_model_of_the_mixin_is_its_inner_model(saved, tmp_path) -> None:
    source = load_source(PretrainedModel.from_pretrained(saved[1]))
    assert (source.name, source.channels, source.size) == ("small_cnn", 3, 8)


def test_a_model_of_timm_says_what_it_takes() -> None:
    import timm

    source = load_source(timm.create_model("resnet10t"))
    assert (source.name, source.channels, source.size) == ("ResNet", 3, 176)
    assert "mean" in source.notes


def test_a_model_that_does_not_say_its_size_is_asked_for_it(tmp_path) -> None:
    model = nn.Sequential(HybridConvNN2d(2, 4), nn.Flatten())
    assert load_source(model).channels == 2
    with pytest.raises(ConvNNError, match=r"^image_size: expected the side of the images .* got None; give it$"):
        export(model, tmp_path / "model.onnx")


def test_a_size_that_the_model_cannot_take(tmp_path) -> None:
    model = create_model("vit_tiny", num_classes=2, stem="cifar", embed_dim=12, depth=1, num_heads=2)
    with pytest.raises(ConvNNError, match=r"^image_size: expected images that the model takes, got \(3, 40, 40\), at"):
        export(model, tmp_path / "model.onnx", image_size=40)
    with pytest.raises(ConvNNError, match=r"^k: expected at most 9"):
        export(nn.Sequential(HybridConvNN2d(3, 4, k=10)), tmp_path / "model.onnx", image_size=1)


class Pair(nn.Module):
    def forward(self, images):
        return images, images


class Branching(nn.Module):
    def forward(self, images):
        return images if float(images.sum()) > 0 else -images


class Broken(nn.Module):
    def forward(self, images):
        return images / 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Pair(), r"model: expected one that returns a tensor, got a tuple; "),
        (Broken(), "model: expected finite results on random images, got nan or inf"),
        (Branching(), r"model: expected one that torch.export can trace, got a Branching \("),
    ],
    ids=["two results", "not finite", "branches on numbers"],
)
def test_a_model_that_cannot_be_exported(model, words, tmp_path) -> None:
    with pytest.raises(ConvNNError, match=words) as refused:
        export(model, tmp_path / "model.pt2", format="torch-export", image_size=4)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_refused(run, tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "alone.ckpt").write_bytes(b"")
    for path in (tmp_path / "nowhere", tmp_path / "folder", tmp_path / "alone.ckpt", run / "result.json"):
        with pytest.raises(ConvNNError, match=r"^checkpoint: expected a folder of save_pretrained or of convnn train"):
            load_source(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("best.ckpt", None), ("result.json", b"{}"), ("result.json", b"{")],
)
def test_a_damaged_run_is_named(run, tmp_path, name, content) -> None:
    import shutil

    copied = shutil.copytree(run, tmp_path / "run")
    (copied / name).unlink()
    if content is not None:
        (copied / name).write_bytes(content)
    with pytest.raises(
        ConvNNError, match=r"^checkpoint: expected the best.ckpt of a run, with its settings"
    ) as refused:
        load_source(copied)
    assert "\n" not in str(refused.value)


def test_an_altered_checkpoint_is_named(run, tmp_path) -> None:
    import shutil

    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "best.ckpt").write_bytes(b"no zip file")
    with pytest.raises(ConvNNError, match=r"^checkpoint: .*best.ckpt', whose SHA-256 is another one"):
        load_source(copied)
    (copied / "best.ckpt.sha256").unlink()
    with pytest.raises(ConvNNError, match=r"^checkpoint: expected the best.ckpt of a run, with its settings"):
        load_source(copied)


def test_a_checkpoint_of_another_model_is_named(run, tmp_path) -> None:
    import shutil

    copied = shutil.copytree(run, tmp_path / "run")
    settings = copied / "settings.yaml"
    settings.write_text(settings.read_text().replace("channels: 1", "channels: 3"))
    with pytest.raises(ConvNNError, match=r"^checkpoint: .*size mismatch for stem.0.conv.weight"):
        load_source(copied)


def test_code_in_a_checkpoint_is_not_run(run, tmp_path) -> None:
    import shutil

    copied = shutil.copytree(run, tmp_path / "run")
    torch.save({"state_dict": Trap(str(tmp_path / "sprung"))}, copied / "best.ckpt")
    with pytest.raises(ConvNNError, match=r"^checkpoint: "):
        load_source(copied)
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")
