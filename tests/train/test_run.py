import dataclasses
import json
import shutil

import pytest
import torch

from convnn import ConvNNError
from convnn.train import TrainSettings
from convnn.train import run as run_module
from convnn.train.module import Classifier
from convnn.train.run import build_model, load_run, train

QUICK = {"layer": "hybrid", "k": 4, "image_size": 8, "channels": 1, "epochs": 3, "batch_size": 8, "lr": 3e-3}


def settings_for(images, out, **options):
    return TrainSettings(data=str(images), out=str(out), accelerator="cpu", progress=False, **{**QUICK, **options})


def checkpoint(out, name="last.ckpt"):
    return torch.load(out / name, weights_only=True)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def timeless(history):
    measured = ("seconds", "images_per_second", "peak_memory")
    return [{name: value for name, value in entry.items() if name not in measured} for entry in history]


def interrupt_at(monkeypatch, step):
    """Press Ctrl-C in the middle of a training step, once."""
    original = Classifier.training_step

    def pressed(self, batch, batch_index):
        if self.trainer.global_step == step:
            raise KeyboardInterrupt
        return original(self, batch, batch_index)

    monkeypatch.setattr(Classifier, "training_step", pressed)


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(settings_for(images, out))


def test_a_run_leaves_everything_behind(uninterrupted, images):
    out, result = uninterrupted
    assert json.loads((out / "result.json").read_text()) == result
    files = {"settings.yaml", "splits.json", "result.json", "metrics.csv"}
    files |= {"best.ckpt", "best.ckpt.sha256", "last.ckpt", "last.ckpt.sha256", "previous.ckpt"}
    assert {path.name for path in out.iterdir()} == files
    assert result["status"] == "finished"
    assert [entry["epoch"] for entry in result["epochs"]] == [1, 2, 3]
    assert result["best"] == max(result["epochs"], key=lambda entry: entry["val_accuracy"])
    assert 0 <= result["test"]["test_accuracy"] <= 1
    assert sum(result["images"].values()) == len(list(images.rglob("*.png")))
    assert result["classes"] == ["0", "1", "2"]
    assert result["parameters"] > 0 < result["flops"]
    assert result["provenance"]["torch"] == torch.__version__


@pytest.mark.parametrize("resumes", [1, 2])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(uninterrupted, images, tmp_path, monkeypatch, resumes):
    whole, expected = uninterrupted
    out = tmp_path / "run"
    steps = checkpoint(whole)["global_step"] // 3
    with monkeypatch.context() as patch:
        interrupt_at(patch, steps + steps // 2)
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(images, out))
    cut = json.loads((out / "result.json").read_text())
    assert (cut["status"], len(cut["epochs"]), cut["test"]) == ("interrupted", 1, None)
    if resumes == 2:
        with monkeypatch.context() as patch:
            interrupt_at(patch, 2 * steps + 1)
            with pytest.raises(KeyboardInterrupt):
                train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False))
    result = train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False))
    first, second = checkpoint(whole), checkpoint(out)
    assert same(first["state_dict"], second["state_dict"])
    assert same(first["optimizer_states"], second["optimizer_states"])
    assert same(first["lr_schedulers"], second["lr_schedulers"])
    assert timeless(result["epochs"]) == timeless(expected["epochs"])
    assert result["test"] == expected["test"]
    assert result["status"] == "finished"


def test_a_run_cut_off_before_its_test_resumes_with_the_test(uninterrupted, images, tmp_path, monkeypatch):
    _, expected = uninterrupted
    out = tmp_path / "run"

    def pressed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "test_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(images, out))
    result = train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False))
    assert result["test"] == expected["test"]
    assert len(result["epochs"]) == 3


def test_a_run_interrupted_in_its_first_epoch_starts_again(uninterrupted, images, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(images, out))
    result = train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False))
    assert timeless(result["epochs"]) == timeless(uninterrupted[1]["epochs"])


def test_a_finished_run_is_returned_and_not_tested_again(uninterrupted, monkeypatch):
    out, expected = uninterrupted
    monkeypatch.setattr(Classifier, "test_step", lambda *_: pytest.fail("the test was used twice"))
    assert train(TrainSettings(out=str(out), resume=True)) == expected


def test_a_run_is_not_overwritten(uninterrupted, images):
    out, _ = uninterrupted
    with pytest.raises(ConvNNError, match=r"^out: expected a folder without a run in it, .*; give --resume"):
        train(settings_for(images, out))


def test_resuming_on_other_images_is_refused(images, tmp_path, monkeypatch):
    folder, out = shutil.copytree(images, tmp_path / "images"), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(folder, out))
    splits = json.loads((out / "splits.json").read_text())["splits"]
    held_out = {*splits["val"]["files"], *splits["test"]["files"]}
    assert len(held_out) == 8
    assert held_out.isdisjoint(splits["train"]["files"])
    shutil.copy(folder / "0" / "0.png", folder / "0" / "1000.png")
    before = (out / "result.json").read_text()
    with pytest.raises(
        ConvNNError, match=r"^data: expected the data with which .* got files that differ: 1 added \('0/10"
    ):
        train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False))
    assert (out / "result.json").read_text() == before
    (folder / "0" / "1000.png").unlink()
    result = train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False))
    assert result["status"] == "finished"


def test_a_finished_run_needs_no_images(uninterrupted, images, monkeypatch):
    out, expected = uninterrupted
    monkeypatch.setattr("convnn.train.run.ImageData", lambda *_, **__: pytest.fail("the images were listed"))
    assert train(TrainSettings(out=str(out), resume=True)) == expected


def test_resuming_with_other_settings_is_refused(uninterrupted):
    out, _ = uninterrupted
    with pytest.raises(ConvNNError, match=r"^lr: expected 0.003, as the run in"):
        train(TrainSettings(out=str(out), resume=True, lr=0.5))


def test_the_best_model_loads(uninterrupted):
    out, _ = uninterrupted
    model, settings, classes = load_run(out)
    assert not model.training
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3)
    assert (settings.layer, classes) == ("hybrid", ["0", "1", "2"])
    saved = checkpoint(out, "best.ckpt")["state_dict"]
    assert torch.equal(saved["model.head.weight"], model.head.weight)


def test_loading_needs_a_finished_epoch(uninterrupted, tmp_path):
    out, _ = uninterrupted
    (tmp_path / "settings.yaml").write_text((out / "settings.yaml").read_text())
    with pytest.raises(ConvNNError, match=r"out: expected a run with a finished epoch \(best.ckpt in it\)"):
        load_run(tmp_path)


def test_the_seed_decides_the_weights(images, tmp_path):
    settings = settings_for(images, tmp_path)
    from convnn.train.module import seed_epoch

    weights = []
    for seed in (0, 0, 1):
        seed_epoch(seed, -1)
        weights.append(build_model(dataclasses.replace(settings, seed=seed), classes=3).head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_timm_model_on_given_splits(split_images, tmp_path):
    options = {
        "model": "vit_tiny_patch16_224",
        "layer": "knn",
        "image_size": 32,
        "channels": 3,
        "epochs": 1,
        "batch_size": 64,
    }
    result = train(settings_for(split_images, tmp_path / "vit", **options, pretrained=False))
    assert result["images"]["test"] == len(list((split_images / "test").rglob("*.png")))
    assert result["status"] == "finished"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "smal_cnn"}, "model: expected .* did you mean 'small_cnn'"),
        ({"layer": "knn"}, "layer: expected one that fits the model, got 'knn'"),
        ({"k": 200}, r"k: expected at most 100 \(there are 100 keys\), got 200; .*images of 8 x 8"),
        (
            {"model": "resnet18", "pretrained": False, "layer": "conv", "image_size": None, "optimizer": "sdg"},
            "optimizer: .* 'sgd'",
        ),
        ({"freeze": "stm.*"}, r"freeze: expected patterns that match names of weights, got 'stm\.\*'"),
        ({"optimizer": "sgd", "betas": "0.9"}, "betas: expected none for sgd"),
        ({"model_options": {"pattern": "nowhere.*"}, "layer": "hybrid"}, "pattern: "),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_data_are_read(
    images, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(run_module, "ImageData", lambda *_, **__: pytest.fail("data are read"))
    with pytest.raises(ConvNNError, match=message):
        train(settings_for(images, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    from convnn._utils.files import make_folder

    (tmp_path / "file").write_text("")
    with pytest.raises(ConvNNError, match=r"out: expected a folder that can be made, got .*file/run.*choose another"):
        make_folder(tmp_path / "file" / "run")


def test_a_named_configuration_is_what_its_name_says(images, tmp_path):
    settings = TrainSettings(data=str(images), out=str(tmp_path), model="vit_tiny_convnn_random32")
    with torch.device("meta"):
        named = build_model(settings, classes=3)
        other = build_model(
            dataclasses.replace(settings, k=5, model="vit_tiny", layer="convnn", stem="cifar"), classes=3
        )
        plain = build_model(dataclasses.replace(settings, k=5, model="resnet18"), classes=3)
    assert named.convnn_config["candidates"] == "random:32"
    assert named.convnn_config["num_classes"] == 3
    assert (other.convnn_config["k"], other.convnn_config["stem"]) == (5, "cifar")
    assert plain.convnn_config["layer"] == "conv"
