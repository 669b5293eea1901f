"""Runs that read with every option: Lightning asks for the batches, augments them, and continues inside an epoch."""

import json

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from convnn import cli
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.data import open_data
from convnn.train.randomness import mixed_seed

TAKES = InputConfig(8, mean=(0.5,) * 3, std=(0.25,) * 3)


class Linear(LightningModule):
    """A linear classifier that keeps what it is trained on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.seen = nn.Linear(192, 3), []

    def training_step(self, batch, batch_index):
        images, labels = batch
        self.seen.append(images.clone())
        return nn.functional.cross_entropy(self.head(images.flatten(1)), labels)

    def validation_step(self, batch, batch_index):
        self.watched = batch[0].clone()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAt(Callback):
    """Saves a checkpoint after a step and ends the run."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(folder, out, *, stop_at=None, checkpoint=None, epochs=2, precision="32", **options):
    settings = TrainSettings(data=str(folder), **{"batch_size": 8, "progress": False, **options})
    data, module = open_data(settings, TAKES), Linear()
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=epochs,
        callbacks=[StopAt(stop_at, out / "inside.ckpt")] if stop_at else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if not stop_at:
            raise
    return module


AUGMENTED = {"augment": "light", "flip": True, "pad_crop": 2, "cutout": 3}


@pytest.mark.parametrize("kind", ["cifar", "shards"])
@pytest.mark.parametrize(
    "options",
    [AUGMENTED, {**AUGMENTED, "resident": "no", "augment": "strong", "workers": 1}],
    ids=["resident", "workers"],
)
def test_a_run_continues_inside_an_epoch_with_the_same_images_and_weights(request, tmp_path, kind, options):
    folder = request.getfixturevalue(kind)
    whole = fit(folder, tmp_path, **options)
    steps = len(whole.seen) // 2
    first = fit(folder, tmp_path, stop_at=steps + 3, **options)
    second = fit(folder, tmp_path, checkpoint=tmp_path / "inside.ckpt", **options)
    assert len(first.seen) == steps + 3
    assert len(second.seen) == steps - 3
    seen = [*first.seen, *second.seen]
    assert all(torch.equal(one, other) for one, other in zip(seen, whole.seen, strict=True))
    assert torch.equal(second.head.weight, whole.head.weight)


@pytest.mark.parametrize("options", [{"flip": True}, {"pad_crop": 2}, {"cutout": 4}, {"augment": "light"}])
@pytest.mark.parametrize("resident", ["yes", "no"])
def test_every_option_changes_the_training_images_alone(cifar, tmp_path, options, resident):
    common = {"augment": "none", "resident": resident, "epochs": 1}
    plain, changed = (fit(cifar, tmp_path, **{**common, **given}) for given in ({}, options))
    assert plain.seen[0].shape == changed.seen[0].shape
    assert not torch.equal(plain.seen[0], changed.seen[0])
    assert torch.equal(plain.watched, changed.watched)
    if "cutout" in options:
        assert (changed.seen[0] == 0).flatten(1).any(1).all()


def test_steps_of_different_epochs_draw_differently_and_seeds_too(cifar, tmp_path):
    module = fit(cifar, tmp_path, augment="none", cutout=4, batch_size=54)
    other = fit(cifar, tmp_path, augment="none", cutout=4, batch_size=54, seed=1)
    holes = [(images == 0).all(1).flatten() for images in (*module.seen, *other.seen)]
    assert len({tuple(hole.tolist()) for hole in holes}) == len(holes) == 4
    assert mixed_seed(0, 1) != mixed_seed(1, 0)


@pytest.mark.parametrize("precision", ["64", "bf16-mixed"])
def test_images_have_the_precision_of_the_run(cifar, tmp_path, precision):
    module = fit(cifar, tmp_path, epochs=1, precision=precision)
    assert module.seen[0].dtype == (torch.float64 if precision == "64" else torch.float32)


@pytest.mark.parametrize("data", ["cifar", "shards"])
def test_the_command_trains_on_parquet_files_and_shards(request, tmp_path, data, capsys):
    folder, out = request.getfixturevalue(data), tmp_path / "run"
    options = "--image-size 8 --epochs 1 --batch-size 16 --progress false --accelerator cpu --bad-images skip"
    given = "--flip --pad-crop 1 --cutout 2 --normalize data --augment none --resident yes"
    command = ["train", "--data", str(folder), "--out", str(out), *options.split(), *given.split()]
    assert cli.main(command) == 0
    assert "3 classes: " in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["images"]["train"] in (48, 60, 54)
    assert result["settings"]["cutout"] == 2
