import pytest

from convnn import ConvNNError
from convnn.demo.settings import DemoSettings
from convnn.train import TrainSettings
from convnn.train.settings import is_named
from convnn.train.settings_file import load_settings, resumed, save_settings


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", "", "data: expected a folder of images or a dataset name of timm, got nothing; give --data PATH"),
        ("data", "nowhere/at/all", "data: expected a folder that exists, got 'nowhere/at/all'; check the path"),
        ("epochs", 0, "epochs: expected a whole number of at least 1, got 0; use 1 or more"),
        ("epochs", True, "epochs: expected a whole number of at least 1, got True"),
        ("batch_size", -3, "batch_size: expected a whole number of at least 1, got -3"),
        ("workers", -1, "workers: expected a whole number of at least 0, got -1"),
        ("seed", 1.5, "seed: expected a whole number of at least 0, got 1.5"),
        ("k", 0, "k: expected a whole number of at least 1, got 0"),
        ("image_size", 0, "image_size: expected a whole number of at least 1, got 0"),
        ("lr", 0.0, "lr: expected a number above 0, got 0.0"),
        ("lr", float("nan"), "lr: expected a number above 0, got nan"),
        ("weight_decay", -1.0, "weight_decay: expected a number of at least 0, got -1.0"),
        ("candidates", "randm:32", "candidates: .*did you mean 'random'"),
        ("candidates", "grid:x", "candidates: expected grid:NUMBER, got 'grid:x'; say how many, e.g. grid:5"),
        ("branch_ratio", 1.5, r"branch_ratio: expected a number in \[0, 1\], got 1.5"),
        ("warmup", "half", r"warmup: expected a number in \[0, 1\], got 'half'"),
        ("label_smoothing", 1.0, r"label_smoothing: expected a number in \[0, 1\), got 1.0"),
        ("val_fraction", 0.0, "val_fraction: expected a number above 0 and at most 0.9, got 0.0"),
        ("channels", 2, r"channels: expected 1 \(grey\) or 3 \(colour\), got 2"),
        ("layer", "hybird", "layer: expected one of 'conv', .* got 'hybird'; did you mean 'hybrid'"),
        ("augment", "ligt", "augment: expected one of 'none', 'light', 'strong', got 'ligt'; did you mean 'light'"),
        ("accelerator", "cuda", "accelerator: expected one of 'auto', 'cpu', 'gpu'"),
        ("precision", "16", "precision: expected one of '32', '64', 'bf16-mixed', '16-mixed', got '16'"),
        ("init", "orig", "init: expected one of 'default', 'random', 'from_original', got 'orig'"),
        ("out", "", "out: expected the name of a folder"),
    ],
)
def test_every_wrong_setting_is_named(tmp_path, field, value, message):
    values = {"data": str(tmp_path), field: value}
    with pytest.raises(ConvNNError, match=f"^{message}"):
        TrainSettings(**values).check()


def test_fractions_must_leave_images_to_train_on(tmp_path):
    with pytest.raises(ConvNNError, match=r"val_fraction \+ test_fraction below 1, got 0.5 \+ 0.6"):
        TrainSettings(data=str(tmp_path), val_fraction=0.5, test_fraction=0.6).check()


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConvNNError, match=r"^out: expected the name of a folder"):
        DemoSettings(out=str(file)).check()


def test_good_settings_pass(tmp_path):
    TrainSettings(data=str(tmp_path), layer="hybrid", image_size=12).check()
    TrainSettings(data="torch/cifar10").check()
    DemoSettings().check()


def test_names_and_folders_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_named("HFDS/cifar10")
    (tmp_path / "torch").mkdir()
    assert not is_named("torch")


def test_settings_survive_the_file(tmp_path):
    settings = TrainSettings(data="x", lr=3e-4, image_size=None, resume=True)
    save_settings(settings, tmp_path / "settings.yaml")
    loaded = load_settings(tmp_path / "settings.yaml")
    assert loaded == TrainSettings(data="x", lr=3e-4)


@pytest.mark.parametrize("text", ["- a", "lr: 1\nlearning: 2\n"])
def test_files_that_are_no_settings(tmp_path, text):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ConvNNError, match=r"settings\.yaml: expected the settings of convnn train"):
        load_settings(tmp_path / "settings.yaml")


def test_resuming_takes_the_run_s_settings(tmp_path):
    out = str(tmp_path)
    save_settings(TrainSettings(data="x", epochs=7, out="elsewhere"), tmp_path / "settings.yaml")
    settings = resumed(TrainSettings(out=out, resume=True, workers=2))
    assert (settings.epochs, settings.out, settings.workers, settings.resume) == (7, out, 2, True)
    assert resumed(TrainSettings(out=out, resume=True, epochs=7)).epochs == 7
    with pytest.raises(ConvNNError, match=r"epochs: expected 7, as the run in .* was started, got 9; leave it out"):
        resumed(TrainSettings(out=out, resume=True, epochs=9))


def test_resuming_nothing(tmp_path):
    with pytest.raises(ConvNNError, match=r"out: expected a folder with a run to resume \(settings.yaml in it\)"):
        resumed(TrainSettings(out=str(tmp_path / "none"), resume=True))
