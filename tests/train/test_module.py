import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import nn

from convnn import ConvNNError
from convnn._utils.quiet import quiet_lightning
from convnn.train.data.resident import Batches, Split, TensorData
from convnn.train.module import Classifier, Optimisation, mixed_seed, seed_epoch
from convnn.train.optimizer import make_schedule
from convnn.train.record import Recorder


def small_data(*, batch_size=4, count=10):
    images, labels = torch.randn(count, 1, 3, 3), torch.arange(count) % 3
    return TensorData({name: Split(images, labels) for name in ("train", "val", "test")}, batch_size=batch_size, seed=0)


def fit(classifier, data, *, epochs=1, recorder=None):
    recorder = recorder or Recorder()
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[recorder],
            logger=False,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=False,
            reload_dataloaders_every_n_epochs=1,
        )
        trainer.fit(classifier, datamodule=data)
        trainer.test(classifier, datamodule=data, verbose=False)
    return recorder.history


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 3))


def test_metrics_are_means_over_images_with_a_ragged_last_batch():
    model, data = network(), small_data(batch_size=4, count=9)
    data.splits["test"] = Split(torch.randn(17, 1, 3, 3), torch.arange(17) % 3)  # batches of 16 and of 1
    classifier = Classifier(model, num_classes=3, optimisation=Optimisation(lr=0.1))
    fit(classifier, data)
    images, labels = data.splits["test"]
    with torch.no_grad():
        logits = model(images)
    by_hand = F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()
    assert classifier.summary["test_loss"] == pytest.approx(by_hand[0], rel=1e-6)
    assert classifier.summary["test_accuracy"] == pytest.approx(by_hand[1], rel=1e-6)
    with torch.no_grad():
        halves = [F.cross_entropy(model(x), y).item() for x, y in Batches(data.splits["test"], 16)]
    assert classifier.summary["test_loss"] != pytest.approx(sum(halves) / 2, rel=1e-4)


def test_training_metrics_are_means_over_images_too():
    classifier = Classifier(network(), num_classes=3, optimisation=Optimisation(lr=1e-12, warmup=0.0))
    data = small_data(batch_size=4, count=9)
    fit(classifier, data)
    with torch.no_grad():
        expected = F.cross_entropy(classifier.model(data.splits["train"].images), data.splits["train"].labels)
    assert classifier.summary["train_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_training_learns_and_history_has_an_entry_an_epoch():
    history = fit(Classifier(network(), num_classes=3, optimisation=Optimisation(lr=0.1)), small_data(), epochs=3)
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert all(entry["seconds"] > 0 and "val_accuracy" in entry for entry in history)


def rates(updates, **options):
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    schedule = make_schedule(Optimisation(lr=1.0, **options), optimizer, updates)
    found = [optimizer.param_groups[0]["lr"]]
    for update in range(1, updates + 1):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_learning_rate_rises_then_falls_to_zero():
    found = rates(100, warmup=0.1)
    assert found[0] == pytest.approx(0.1)
    assert max(found) == found[10] == 1.0
    assert found[:11] == sorted(found[:11])
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[100] == pytest.approx(0.0)
    assert rates(1, warmup=0.0)[0] == 1.0


def test_schedules_by_name():
    assert rates(4, warmup=0.0, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates(4, warmup_steps=2, schedule="constant") == pytest.approx([0.5, 0.75, 1.0, 1.0, 1.0])
    assert rates(4, warmup=0.0, min_lr=0.5)[-1] == pytest.approx(0.5)


def test_label_smoothing_is_for_training_alone():
    torch.manual_seed(0)
    classifier = Classifier(network(), num_classes=3, optimisation=Optimisation(label_smoothing=0.5))
    batch = (torch.randn(4, 1, 3, 3), torch.tensor([0, 1, 2, 0]))
    plain = F.cross_entropy(classifier(batch[0]), batch[1]).item()
    assert classifier.training_step(batch, 0).item() != pytest.approx(plain)
    classifier.validation_step(batch, 0)
    assert classifier.metric("val_loss").compute().item() == pytest.approx(plain)


def shifted(x, rows, columns):
    """Move images by so many pixels, the border filled by reflection: pixel by pixel."""
    height, width = x.shape[2:]
    moved = torch.empty_like(x)
    for i in range(height):
        for j in range(width):
            row, column = abs(i - rows), abs(j - columns)
            row, column = min(row, 2 * (height - 1) - row), min(column, 2 * (width - 1) - column)
            moved[:, :, i, j] = x[:, :, row, column]
    return moved


@pytest.mark.parametrize("views", ["mirrored", "shifted"])
def test_an_evaluation_is_of_the_mean_logits_of_several_views(views):
    torch.manual_seed(0)
    optimisation = Optimisation(warmup=0.0)
    model, batch = network(), (torch.randn(4, 1, 3, 3), torch.tensor([0, 1, 2, 0]))
    classifier = Classifier(model, num_classes=3, optimisation=optimisation, views=views)
    other = Classifier(model, num_classes=3, optimisation=optimisation)
    assert torch.equal(classifier.training_step(batch, 0), other.training_step(batch, 0))
    for stage in ("val", "test"):
        getattr(classifier, "validation_step" if stage == "val" else "test_step")(batch, 0)
        x = batch[0]
        logits = (model(x) + model(x.flip(3))) / 2
        if views == "shifted":
            moved = [model(y) + model(y.flip(3)) for y in (shifted(x, 1, 1), shifted(x, -1, -1))]
            logits = logits / 2 + sum(moved) / 8
        expected = F.cross_entropy(logits, batch[1]).item()
        assert classifier.metric(f"{stage}_loss").compute().item() == pytest.approx(expected)
        assert expected != pytest.approx(F.cross_entropy(model(batch[0]), batch[1]).item())


def test_unknown_optimiser_with_the_closest_name():
    classifier = Classifier(network(), num_classes=3, optimisation=Optimisation(optimizer="adamww"))
    with pytest.raises(ConvNNError, match=r"optimizer: expected one of .* got 'adamww'; did you mean 'adamw'"):
        fit(classifier, small_data())


def test_epochs_have_seeds_of_their_own():
    seeds = {mixed_seed(seed, epoch) for seed in range(20) for epoch in range(-1, 20)}
    assert len(seeds) == 420
    seed_epoch(1, 2)
    first = torch.rand(3)
    seed_epoch(1, 2)
    assert torch.equal(first, torch.rand(3))


def test_batches_cover_every_image_once_and_depend_on_seed_and_epoch_alone():
    data = small_data(batch_size=4, count=10)
    labels = [batch[1] for batch in data.train_dataloader()]
    assert [len(batch) for batch in labels] == [4, 4, 2]
    assert sorted(torch.cat(labels).tolist()) == sorted(data.splits["train"].labels.tolist())
    again = [batch[1] for batch in small_data(batch_size=4, count=10).train_dataloader()]
    assert all(torch.equal(one, other) for one, other in zip(labels, again, strict=True))


def test_a_batch_needs_an_image():
    with pytest.raises(ConvNNError, match="batch_size: expected at least 1, got 0"):
        Batches(Split(torch.zeros(1, 1), torch.zeros(1)), 0)
