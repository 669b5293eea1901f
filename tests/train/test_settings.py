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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixup": 0.2, "batch_size": 1}, r"batch_size: expected at least 2 \(mixup and CutMix mix images\), got 1"),
        ({"cutmix": 1.0, "batch_size": 1}, "batch_size: expected at least 2"),
        ({"min_lr": 1.0}, r"min_lr: expected at most lr \(0.001\), got 1.0; lower it"),
        ({"max_steps": 3, "warmup_steps": 4}, r"warmup_steps: expected at most max_steps \(3\), got 4"),
        ({"decay_all": True, "layer_decay": 0.5}, "decay_all: expected False"),
        ({"ema_warmup": True}, "ema_warmup: expected False without ema"),
        ({"weights": "nowhere.pth"}, "weights: expected a file that exists, got 'nowhere.pth'"),
        ({"seeds": "0,1", "seed": 3}, "seed: expected none beside seeds, got 3"),
        ({"seeds": "0,0"}, "seeds: expected different whole numbers"),
        ({"seeds": "0,x"}, "seeds: expected a list such as 0,1,2, got '0,x'"),
        ({"betas": "0.9,2"}, r"betas: expected numbers in \[0, 1\), got '0.9,2'"),
        ({"resume": True, "auto_resume": True}, "auto_resume: expected False beside resume"),
        ({"devices": "many"}, "devices: expected auto or a whole number of at least 1, got 'many'"),
        ({"devices": "0"}, "devices: expected auto or a whole number of at least 1, got '0'"),
        ({"devices": "4", "batch_size": 3}, "batch_size: expected at least 4, an image for each process, got 3"),
        ({"schedule": "cosin"}, "schedule: expected one of .* did you mean 'cosine'"),
        ({"views": "mirrord"}, "views: expected one of 'one', 'mirrored', 'shifted', got 'mirrord'; did you mean"),
        ({"strategy": "dp"}, "strategy: expected one of 'auto', 'ddp', 'fsdp', got 'dp'"),
        ({"layer_decay": 1.5}, "layer_decay: expected a number above 0 and at most 1, got 1.5"),
        ({"max_steps": 0}, "max_steps: expected a whole number of at least 1, got 0"),
        ({"accumulate": 0}, "accumulate: expected a whole number of at least 1, got 0"),
        ({"ema": 1.0}, r"ema: expected a number in \[0, 1\), got 1.0"),
        ({"accelerator": "cpu", "precision": "16-mixed"}, "precision: .*, got '16-mixed', which needs a GPU; use bf16"),
        ({"accelerator": "cpu", "strategy": "fsdp"}, "strategy: .*, got 'fsdp', which needs a GPU; use ddp"),
        ({"accelerator": "cpu", "sync_batchnorm": True}, "sync_batchnorm: .* needs a GPU"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_named(tmp_path, values, message):
    with pytest.raises(ConvNNError, match=f"^{message}"):
        TrainSettings(data=str(tmp_path), **values).check()


@pytest.mark.parametrize("values", [{"ema": 0.9}, {"clip_grad": 1.0}, {"freeze": ("stem.*",)}], ids=str)
def test_what_shards_cannot_do_is_named(tmp_path, monkeypatch, values):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    settings = TrainSettings(data=str(tmp_path), accelerator="gpu", strategy="fsdp", **values)
    with pytest.raises(ConvNNError, match=f"^{next(iter(values))}: expected none with strategy fsdp"):
        settings.check()


def test_an_accelerator_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConvNNError, match=r"^accelerator: expected one that this machine has, got 'gpu'"):
        TrainSettings(data=str(tmp_path), accelerator="gpu").check()


def test_lists_as_text_and_from_files(tmp_path):
    from convnn.arguments import parse

    (tmp_path / "run.yaml").write_text("freeze: [stem.*, head.bias]\nseeds: [0, 1]\nbetas: 0.9,0.95\n")
    parsed = parse(TrainSettings, ["--config", str(tmp_path / "run.yaml")], command="train", text="")
    assert (list(parsed.freeze), list(parsed.seeds), parsed.betas) == (["stem.*", "head.bias"], [0, 1], "0.9,0.95")
    parsed = parse(TrainSettings, ["--freeze", "stem.*,head.bias", "--seeds", "0,1"], command="train", text="")
    assert (parsed.freeze, parsed.seeds) == ("stem.*,head.bias", "0,1")
    save_settings(TrainSettings(freeze=("a", "b"), betas=(0.9, 0.99)), tmp_path / "settings.yaml")
    resumed(TrainSettings(out=str(tmp_path), freeze=("a", "b"), betas=(0.9, 0.99), resume=True))
