"""Batches by number: the same whatever the workers, from any position, and divided among processes without loss."""

import os
import signal

import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from convnn import ConvNNError
from convnn.models import InputConfig
from convnn.train import TrainSettings
from convnn.train.data import open_data
from convnn.train.data.loaders import StreamLoader, WorkerLoader
from convnn.train.data.order import IndexBatches
from convnn.train.data.sources import Part, Samples, Source
from convnn.train.data.transforms import to_bytes

TAKES = InputConfig(12)


def data_of(folder, **options):
    return open_data(TrainSettings(data=str(folder), **{"batch_size": 4, **options}), TAKES)


def batches(loader):
    return [(images, labels) for images, labels in loader]


def equal(one, other):
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


@pytest.mark.parametrize("augment", ["light", "strong"])
def test_workers_change_nothing(images, augment):
    alone, helped = (batches(data_of(images, augment=augment, workers=n).train_dataloader()) for n in (0, 2))
    assert equal(alone, helped)
    other = batches(data_of(images, augment=augment, seed=1, val_fraction=0.1).train_dataloader())
    assert not equal(alone[:1], other[:1])


@pytest.mark.parametrize("options", [{"augment": "strong", "workers": 2}, {"augment": "strong"}, {"resident": "yes"}])
def test_a_loader_continues_where_its_state_was_taken(images, options):
    whole = batches(data_of(images, **options).train_dataloader())
    first = data_of(images, **options).train_dataloader()
    for _ in zip(range(5), first, strict=False):
        pass
    state = first.state_dict()
    assert state == {"epoch": 0, "batches": 5}
    second = data_of(images, **options).train_dataloader()
    second.load_state_dict(state)
    assert len(second) == len(whole)
    assert equal(batches(second), whole[5:])
    assert equal(batches(second), whole), "the next pass is a whole one"


def test_a_continued_loader_reads_no_image_before_its_position(images, monkeypatch):
    loader = data_of(images, augment="strong").train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 5})
    numbers = []
    read = Samples.__getitem__
    monkeypatch.setattr(Samples, "__getitem__", lambda self, i: numbers.append(i) or read(self, i))
    next(iter(loader))
    assert numbers == loader.batches[5].tolist()


def test_states_of_another_epoch_or_of_one_that_is_over_give_the_first_batch(images):
    loader = data_of(images).train_dataloader()
    whole = batches(loader)
    for state in ({"epoch": 3, "batches": 5}, {"epoch": 0, "batches": len(loader)}):
        loader.load_state_dict(state)
        assert equal(batches(loader), whole)


def test_an_iteration_that_was_left_is_not_continued(images):
    loader = data_of(images).train_dataloader()
    whole = batches(loader)
    for _ in zip(range(3), loader, strict=False):
        pass
    assert equal(batches(loader), whole)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_have_the_rows_of_each_batch_in_turn(processes):
    order = torch.randperm(23)
    whole = list(IndexBatches(order, 6, least=processes))
    shares = [list(IndexBatches(order, 6, least=processes, share=(rank, processes))) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    for number, batch in enumerate(whole):
        for rank, share in enumerate(shares):
            assert torch.equal(share[number], batch[rank::processes])
            assert len(share[number]) > 0


def test_a_stream_continues_by_counting():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ((torch.tensor([number]), number) for number in range(11))

    def loader():
        return StreamLoader(Stream(), 2, drop_last=True, workers=0, epoch=1)

    whole, rest = loader(), loader()
    rest.load_state_dict({"epoch": 1, "batches": 3})
    assert equal(batches(rest), batches(whole)[3:])
    assert len(batches(whole)) == 5


class Killer(Source):
    """A source whose reader dies, as one that the system stops for its memory."""

    def __len__(self):
        return 4

    def name(self, index):
        return "killed.png"

    def read(self, index, mode):
        os.kill(os.getpid(), signal.SIGKILL)


class Odd(Killer):
    """A source of which an image cannot be transformed."""

    def name(self, index):
        return "odd.png"

    def read(self, index, mode):
        return Image.new("RGB", (3, 0)), 0


def worker_loader(source, workers):
    settings = TrainSettings()
    samples = Samples(Part(source), to_bytes(settings, takes=TAKES, training=False))

    def stop(image):
        raise ConvNNError(image.message)

    return WorkerLoader(samples, IndexBatches(torch.arange(4), 2), workers=workers, on_damaged=stop)


def test_a_killed_worker_is_one_line():
    with pytest.raises(ConvNNError, match=r"^workers: expected processes that read images and stay alive, got") as lost:
        list(worker_loader(Killer(), 1))
    assert "\n" not in str(lost.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_transformed_is_named(workers):
    with pytest.raises(ConvNNError, match=r"got 'odd\.png' \(") as named:
        list(worker_loader(Odd(), workers))
    assert "\n" not in str(named.value)
