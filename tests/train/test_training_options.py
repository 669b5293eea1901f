"""Every option of how weights are updated: a run trains with it, and it does what it says."""

import json

import pytest
import timm
import torch
from torch import nn

from convnn import ConvNNError
from convnn.train import TrainSettings
from convnn.train import run as run_module
from convnn.train.loading import load_run
from convnn.train.module import Classifier, Optimisation
from convnn.train.optimizer import freeze, make_optimizer

from .small_runs import TINY, RandomData, run, use_tiny_runs, weights

PLAIN = {**TINY, "layer": "conv", "epochs": 2, "augment": "none"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The folder of a run without any option."""
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_runs(patch)
        out = tmp_path_factory.mktemp("plain") / "run"
        run(out, **PLAIN)
    return out


def learned(out, name="5.weight"):
    return weights(out)["state_dict"][f"model.{name}"]


def sizes_of_gradients(monkeypatch):
    seen = []
    original = Classifier.optimizer_step

    def measured(self, epoch, batch_idx, optimizer, closure):
        original(self, epoch, batch_idx, optimizer, closure)
        gradients = [w.grad.norm() for w in self.model.parameters() if w.grad is not None]
        seen.append(float(torch.stack(gradients).norm()))

    monkeypatch.setattr(Classifier, "optimizer_step", measured)
    return seen


def test_gradients_are_clipped(tiny, tmp_path, monkeypatch):
    seen = sizes_of_gradients(monkeypatch)
    run(tmp_path / "run", **PLAIN, clip_grad=0.01)
    assert max(seen) == pytest.approx(0.01, rel=1e-3)


def test_accumulated_steps_are_one_larger_step(tiny, tmp_path):
    common = {"lr": 0.01, "optimizer": "momentum", "max_steps": 3}
    for name, options in (("four", {"batch_size": 4, "accumulate": 2}), ("eight", {"batch_size": 8})):
        run(tmp_path / name, **{**PLAIN, **common, **options})
    first, second = (weights(tmp_path / name) for name in ("four", "eight"))
    assert first["global_step"] == second["global_step"] == 3
    torch.testing.assert_close(learned(tmp_path / "four"), learned(tmp_path / "eight"))


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"schedule": "constant", "warmup": 0.0}, [3e-3, 3e-3]),
        ({"schedule": "linear", "warmup": 0.0}, [1.5e-3, 0.0]),
        ({"schedule": "cosine", "warmup": 0.0, "min_lr": 1e-3}, [2e-3, 1e-3]),
        ({"schedule": "constant", "warmup_steps": 12}, [3e-3 * (1 / 12 + 6 / 12 * 11 / 12), 3e-3]),
    ],
)
def test_schedules(tiny, tmp_path, options, rates):
    result = run(tmp_path / "run", **{**PLAIN, **options})
    assert [epoch["lr"] for epoch in result["epochs"]] == pytest.approx(rates)


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.2},
        {"mixup": 0.5},
        {"cutmix": 1.0},
        {"mixup": 0.5, "cutmix": 1.0, "mix_prob": 0.5},
        {"clip_grad": 1e-3, "optimizer": "sgd"},
        {"precision": "bf16-mixed"},
        {"precision": "64"},
        {"optimizer": "sgd", "momentum": 0.5},
        {"optimizer": "muon"},
        {"betas": "0.5,0.6", "eps": 1e-3},
        {"weight_decay": 0.5},
        {"weight_decay": 0.5, "decay_all": True},
    ],
    ids=str,
)
def test_a_run_trains_with(plain, tiny, tmp_path, options):
    out = tmp_path / "run"
    result = run(out, **{**PLAIN, **options})
    assert result["status"] == "finished"
    assert not torch.equal(learned(out), learned(plain))
    assert result["epochs"][-1]["train_loss"] < 2.5


@pytest.mark.parametrize("options", [{"channels_last": True}, {"eval_every": 2}, {"devices": 1}], ids=str)
def test_a_run_learns_the_same_with(plain, tiny, tmp_path, options):
    run(tmp_path / "run", **{**PLAIN, **options})
    torch.testing.assert_close(learned(tmp_path / "run"), learned(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(plain, tiny, tmp_path):
    run(tmp_path / "run", **{**PLAIN, "compile": True})
    assert weights(tmp_path / "run")["state_dict"].keys() == weights(plain)["state_dict"].keys()
    torch.testing.assert_close(learned(tmp_path / "run"), learned(plain), rtol=1e-3, atol=1e-4)


def test_mixed_images_and_labels_of_an_odd_batch():
    from convnn.train.module import _mixed

    mixer = Optimisation(mixup=1.0).mixer(3)
    images, labels = torch.randn(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    before = images.clone()
    mixed, targets = _mixed(mixer, images, labels)
    assert torch.equal(images, before)
    assert torch.equal(mixed[4], images[4])
    assert not torch.equal(mixed[:4], images[:4])
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 5)
    assert targets[4].tolist() == [0.0, 1.0, 0.0]
    alone, target = _mixed(mixer, images[:1], labels[:1])
    assert torch.equal(alone, images[:1])
    assert target.tolist() == [[1.0, 0.0, 0.0]]


def test_averaged_weights_are_evaluated_and_saved(plain, tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    result = run(out, **PLAIN, ema=0.9)
    saved = weights(out, "best.ckpt")["state_dict"]
    assert torch.equal(learned(out), learned(plain))  # the training itself is the same
    assert not torch.equal(saved["average.module.5.weight"], saved["model.5.weight"])
    monkeypatch.setattr("convnn.train.loading.build_model", run_module.build_model)
    model, settings, _ = load_run(out)
    assert torch.equal(model[5].weight, saved["average.module.5.weight"])
    images, labels = RandomData(settings, takes=run_module.input_config("small_cnn", 8, None)).splits["test"]
    loss = nn.functional.cross_entropy(model(images), labels)
    assert loss.item() == pytest.approx(result["test"]["test_loss"], rel=1e-5)


def test_an_average_by_hand(tiny, tmp_path):
    run(tmp_path / "three", **{**PLAIN, "epochs": 1, "max_steps": 3}, ema=0.5, schedule="constant")
    after = []
    for steps in (1, 2, 3):
        run(tmp_path / str(steps), **{**PLAIN, "epochs": 1, "max_steps": steps}, schedule="constant", warmup_steps=0)
        after.append(learned(tmp_path / str(steps)))
    run(tmp_path / "average", **{**PLAIN, "epochs": 1, "max_steps": 3}, schedule="constant", warmup_steps=0, ema=0.5)
    expected = after[0] / 4 + after[1] / 4 + after[2] / 2
    torch.testing.assert_close(weights(tmp_path / "average")["state_dict"]["average.module.5.weight"], expected)


def test_frozen_weights_stay_and_are_named(tiny, tmp_path):
    said = []
    settings = TrainSettings(out=str(tmp_path / "run"), **{**TINY, "epochs": 2}, freeze="0.*,1.*")
    run_module.train(settings, say=said.append)
    saved = weights(tmp_path / "run")
    assert "Frozen: 4 of 6 weights: 0.weight, 0.bias, 1.weight, 1.bias" in said
    assert saved["state_dict"]["model.1.weight"].eq(1).all()
    assert saved["state_dict"]["model.1.num_batches_tracked"] == 0
    assert len(saved["optimizer_states"][0]["state"]) == 2


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["stm.*"], r"freeze: expected patterns .* got 'stm\.\*'; names are: 0\.weight, 0\.bias"),
        (["*"], "leave weights"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything(patterns, message):
    with pytest.raises(ConvNNError, match=message):
        freeze(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), patterns)


def decays(model, **options):
    groups = make_optimizer(Optimisation(weight_decay=0.1, **options), model).param_groups
    return {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}


def test_biases_and_norms_do_not_decay_unless_all_do():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    chosen, every = decays(model), decays(model, decay_all=True)
    assert [chosen[id(weight)] for weight in model.parameters()] == [0.1, 0.0, 0.0, 0.0]
    assert [every[id(weight)] for weight in model.parameters()] == [0.1] * 4


def test_layers_further_down_learn_more_slowly():
    model = timm.create_model("test_vit", num_classes=3)
    optimizer = make_optimizer(Optimisation(layer_decay=0.5), model)
    scales = {id(w): group["lr_scale"] for group in optimizer.param_groups for w in group["params"]}
    assert scales[id(model.head.weight)] == 1.0
    assert scales[id(model.patch_embed.proj.weight)] < scales[id(model.blocks[0].mlp.fc1.weight)] < 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd", "betas": [0.9, 0.99]}, "betas: expected none for sgd"),
        ({"betas": [0.9]}, "betas: expected 2 for adamw"),
        ({"optimizer": "sgd", "eps": 1e-3}, "eps: expected none for sgd"),
        ({"optimizer": "adamww"}, "optimizer: expected one of"),
    ],
)
def test_options_that_an_optimiser_does_not_have(options, message):
    with pytest.raises(ConvNNError, match=message):
        make_optimizer(Optimisation(**options), nn.Linear(2, 2))


def test_the_published_names_are_what_they_are_called():
    plan = {"optimizer": "sgd", "momentum": 0.8}
    group = make_optimizer(Optimisation(**plan), nn.Linear(2, 2)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, True)
    group = make_optimizer(Optimisation(**{**plan, "optimizer": "momentum"}), nn.Linear(2, 2)).param_groups[0]
    assert group["nesterov"] is False


def test_max_steps_stop_inside_an_epoch_with_a_validation(tiny, tmp_path):
    result = run(tmp_path / "run", **{**PLAIN, "epochs": 5, "eval_every": 4, "max_steps": 8})
    assert weights(tmp_path / "run")["global_step"] == 8
    assert [("val_accuracy" in epoch, epoch["step"]) for epoch in result["epochs"]] == [(False, 6), (True, 8)]
    assert result["epochs"][-1]["lr"] == pytest.approx(0.0)


def test_a_run_that_reached_max_steps_is_tested_and_trained_no_further(tiny, tmp_path, monkeypatch):
    out, options = tmp_path / "run", {**PLAIN, "epochs": 5, "max_steps": 8}
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "test_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(out, **options)
    monkeypatch.setattr(Classifier, "training_step", lambda *_: pytest.fail("it was trained further"))
    result = run_module.train(TrainSettings(out=str(out), resume=True, accelerator="cpu", progress=False))
    assert result["status"] == "finished"
    assert len(result["epochs"]) == 2


def test_validations_every_few_epochs_and_at_the_end(tiny, tmp_path):
    result = run(tmp_path / "run", **{**PLAIN, "epochs": 5, "eval_every": 2})
    assert ["val_accuracy" in epoch for epoch in result["epochs"]] == [False, True, False, True, True]


def test_every_number_is_recorded(plain):
    result = json.loads((plain / "result.json").read_text())
    entry = result["epochs"][-1]
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_top5", "lr", "step"} <= entry.keys()
    assert entry["images_per_second"] == pytest.approx(41 / entry["seconds"])
    assert entry["peak_memory"] > 10e6
    assert entry["val_accuracy"] <= entry["val_top5"] <= 1
    assert {"test_loss", "test_accuracy", "test_top5"} == result["test"].keys()
    lines = (plain / "metrics.csv").read_text().splitlines()
    assert len(lines) == 3
    assert dict(zip(lines[0].split(","), lines[2].split(","), strict=True))["epoch"] == "2"


def test_dropout_and_stochastic_depth_reach_the_model():
    settings = TrainSettings(model="test_vit", layer="attention", image_size=32, dropout=0.25, drop_path=0.5)
    model = run_module.build_model(settings, classes=3)
    assert model.head_drop.p == 0.25
    assert max(part.drop_prob for part in model.modules() if hasattr(part, "drop_prob")) == 0.5
    with pytest.raises(ConvNNError, match=r"^dropout: expected 0 for this model, got 0.25 for small_cnn"):
        run_module.build_model(TrainSettings(dropout=0.25), classes=3)


def test_pretrained_weights_of_a_file_are_fine_tuned(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "ImageData", RandomData)
    source = timm.create_model("test_vit", num_classes=7, img_size=32)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    options = {**PLAIN, "model": "test_vit", "layer": "attention", "channels": 3, "image_size": 32, "epochs": 1}
    out = tmp_path / "run"
    run(out, **{**options, "lr": 1e-9}, weights=str(tmp_path / "weights.pth"))
    model, _, _ = load_run(out)
    torch.testing.assert_close(model.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight, rtol=0, atol=1e-6)
    assert model.head.out_features == 6
