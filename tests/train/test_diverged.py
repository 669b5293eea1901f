"""A run whose numbers are no longer finite is no success."""

import json

import pytest
import torch
from torch import nn

from convnn import ConvNNError, cli
from convnn._utils.files import write_json
from convnn.errors import DivergedError
from convnn.train.data.resident import Split, TensorData
from convnn.train.module import Classifier, Optimisation
from convnn.train.record import Recorder

from .test_module import fit, network, small_data


class Poisoned(nn.Module):
    """A network of which every value is nan in one stage only, or whose unused weight becomes inf."""

    def __init__(self, stage=None, *, weight=False):
        super().__init__()
        self.body, self.stage, self.weight = network(), stage, weight
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        if self.weight:
            with torch.no_grad():
                self.unused.fill_(float("inf"))
        return self.body(images) * (float("nan") if self.training == (self.stage == "train") and self.stage else 1.0)


def classifier(model, **optimisation):
    return Classifier(model, num_classes=3, optimisation=Optimisation(**optimisation))


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (Poisoned("train"), "the training loss is nan at epoch 1, step 1; lower --lr"),
        (Poisoned("val"), "the validation loss is nan at epoch 1, step 1; lower --lr"),
        (Poisoned(weight=True), "model.unused is no longer finite after epoch 1; lower --lr"),
    ],
)
def test_a_number_that_is_not_finite_stops_the_run(model, where):
    with pytest.raises(DivergedError, match=f"^the training diverged: {where}"):
        fit(classifier(model), small_data())


def test_pixels_that_are_not_finite_are_the_data_s_fault():
    data = small_data()
    images, labels = data.splits["train"]
    images[7] = float("inf")
    with pytest.raises(DivergedError, match=r"images have pixels that are nan or inf; mend the data"):
        fit(classifier(network()), TensorData({**data.splits, "train": Split(images, labels)}, batch_size=4, seed=0))


def test_a_mean_of_losses_hides_nothing():
    metric = classifier(network()).metric("train_loss")
    with pytest.raises(RuntimeError, match="nan"):
        metric.update(torch.tensor(float("nan")), weight=3)
    metric.update(torch.tensor(float("inf")), weight=3)
    assert metric.compute().isinf()


def test_what_was_good_before_stays(tmp_path):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.seen = network(), 0

        def forward(self, images):
            self.seen += self.training
            return self.body(images) * (float("nan") if self.seen > 4 else 1.0)

    with pytest.raises(DivergedError, match=r"the training loss is nan at epoch 2, step 2"):
        fit(classifier(Late()), small_data(batch_size=4, count=12), epochs=3, recorder=Recorder(tmp_path))
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["best"], result["test"], len(result["epochs"])) == ("diverged", None, None, 1)
    for name in ("best.ckpt", "last.ckpt"):
        saved = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        assert all(bool(weight.isfinite().all()) for weight in saved.values())


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), -float("inf"), 1.5], "b": {"c": (float("inf"), None, "nan")}})
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == {
        "a": [None, None, 1.5],
        "b": {"c": [None, None, "nan"]},
    }


def test_a_diverged_run_says_so_and_is_not_resumed(images, tmp_path, capsys):
    out = tmp_path / "run"
    options = ("--image-size", "8", "--channels", "1", "--epochs", "2", "--batch-size", "8", "--progress", "false")
    assert (
        cli.main(["train", "--data", str(images), "--out", str(out), "--lr", "1e30", "--accelerator", "cpu", *options])
        == 1
    )
    shown, error = capsys.readouterr()
    assert error.startswith("convnn train: error: the training diverged: the training loss is nan at epoch 1, step ")
    assert len(error.splitlines()) == 1
    assert "Best epoch" not in shown
    assert "tested" not in shown
    result = json.loads((out / "result.json").read_text(), parse_constant=pytest.fail)
    assert (result["status"], result["best"], result["test"]) == ("diverged", None, None)
    assert not (out / "best.ckpt").exists()
    assert cli.main(["train", "--out", str(out), "--resume"]) == 2
    assert "--out: expected a run that can go on, got one that diverged" in capsys.readouterr().err


@pytest.mark.parametrize(("layer", "shape"), [(nn.BatchNorm2d(9), (1, 9, 1, 1)), (nn.InstanceNorm2d(9), (2, 9, 1, 1))])
def test_a_batch_without_statistics_is_named(layer, shape):
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(9, 3))
    batch = torch.randn(shape), torch.zeros(shape[0], dtype=torch.int64)
    with pytest.raises(
        ConvNNError, match=rf"^batch_size: expected images a step .* got {shape[0]}, of which .* raise --batch"
    ):
        classifier(model).training_step(batch, 0)
