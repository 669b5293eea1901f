"""benchmarks/bench_recall.py: its sequences, its training, and that a later start goes on behind the record."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def load():
    spec = importlib.util.spec_from_file_location("bench_recall", ROOT / "benchmarks" / "bench_recall.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recall = load()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_query_asks_for_the_value_of_a_key_that_occurred():
    keys, values, answers = recall.draw(5, 24, generator())
    assert keys.shape == values.shape == (5, 24)
    assert answers.shape == (5, 12)
    for row in range(5):
        pairs = dict(zip(keys[row, :12].tolist(), values[row, :12].tolist(), strict=True))
        assert len(pairs) == 12  # the keys of a sequence differ
        assert [pairs[key] - 1 for key in keys[row, 12:].tolist()] == answers[row].tolist()
    assert (values[:, :12] > 0).all()
    assert (values[:, 12:] == 0).all()


def test_keys_values_and_queries_vary_over_their_whole_range():
    keys, _, answers = recall.draw(400, 24, generator())
    assert keys.unique().tolist() == list(range(24))
    assert answers.unique().tolist() == list(range(recall.VALUES))
    assert len({tuple(sorted(row)) for row in keys[:, :12].tolist()}) > 390  # which keys occur
    again = recall.draw(400, 24, generator())
    assert torch.equal(keys, again.keys)
    assert not torch.equal(keys, recall.draw(400, 24, generator(1)).keys)


def test_k_neighbours_and_all_of_them_are_full_attention():
    torch.manual_seed(0)
    full, nearest = recall.Recall(24, None), recall.Recall(24, 24)
    nearest.load_state_dict(full.state_dict())
    few = recall.Recall(24, 2)
    few.load_state_dict(full.state_dict())
    keys, values, _ = recall.draw(3, 24, generator())
    torch.testing.assert_close(nearest(keys, values), full(keys, values))
    assert not torch.allclose(few(keys, values), full(keys, values))


def test_short_sequences_grow_to_the_full_length_with_all_keys():
    trainer, lengths = recall.Trainer(256, 4, grow=True), []
    for trainer.taken in range(200):
        lengths.append(trainer.length())
    assert [lengths.count(length) for length in (64, 128, 256)] == [100, 20, 80]
    keys, _, _ = trainer.draw(64, generator())
    assert keys.shape == (128, 64)
    assert keys.max() > 240
    assert recall.Trainer(256, 4).length() == 256


def test_training_does_not_end_before_the_full_length(monkeypatch):
    monkeypatch.setattr(recall.Trainer, "__call__", lambda trainer: setattr(trainer, "taken", trainer.taken + 1))
    monkeypatch.setattr(recall.Trainer, "evaluate", lambda trainer, seed: (0.0, 1.0))
    assert recall.train(64, 4, steps=1000, grow=True)["steps"] == 10 + recall.AFTER
    assert recall.train(256, 4, steps=1000, grow=True)["steps"] == 120 + recall.AFTER
    assert recall.train(256, 4, steps=1000)["steps"] == 10 + recall.AFTER


@pytest.mark.parametrize("k", [None, 2])
def test_short_sequences_are_learned(monkeypatch, k):
    for name in ("STEP_TOKENS", "HELD_OUT"):
        monkeypatch.setattr(recall, name, 512)
    found = recall.train(4, k, steps=400)
    assert found["steps_to_99"] is not None
    assert found["steps"] == min(400, found["steps_to_99"] + recall.AFTER)
    assert found["accuracy"] > 0.98


def start(monkeypatch, path, *more):
    given = ["--json", str(path), "--tokens", "64", "--k", "full,4", "--seeds", "1", "--steps", "2", *more]
    monkeypatch.setattr(sys, "argv", ["bench_recall.py", *given])
    recall.main()
    return json.loads(path.read_text())


def in_this_process(job, tokens, ks):
    return recall.time_steps(tokens, ks) if job == "time" else recall.extra_memory(tokens, ks[0])


def test_a_start_goes_on_behind_the_record(monkeypatch, tmp_path):
    monkeypatch.setattr(recall, "fresh", in_this_process)
    monkeypatch.setattr(recall, "ROUNDS", 2)
    for name in ("STEP_TOKENS", "HELD_OUT"):
        monkeypatch.setattr(recall, name, 1024)
    path = tmp_path / "recall.json"
    record = start(monkeypatch, path)
    assert [(run["k"], run["seed"], run["steps"], run["steps_to_99"]) for run in record["runs"]] == [
        (None, 0, 2, None), (4, 0, 2, None),
    ]  # fmt: skip
    assert all(0 <= run["accuracy"] < 0.1 for run in record["runs"])
    assert [row["k"] for row in record["costs"]] == [None, 4]
    assert record["costs"][0]["impl"] == "sdpa"
    assert record["costs"][1]["impl"] in ("tiled", "native")
    assert record["costs"][0]["ratio"] == 1
    assert all(row["seconds"] > 0 and row["extra_mib"] >= 0 for row in record["costs"])

    trained = []

    def train(**arguments):
        trained.append((arguments["k"], arguments["seed"], arguments["lr"], arguments["grow"]))
        return {"accuracy": 0.5}

    monkeypatch.setattr(recall, "train", train)
    monkeypatch.setattr(recall, "costs", lambda *_: pytest.fail("measured again"))
    assert start(monkeypatch, path)["runs"] == record["runs"]
    assert not trained
    more = start(monkeypatch, path, "--seeds", "2")
    assert trained == [(None, 1, recall.LR, False), (4, 1, recall.LR, False)]
    start(monkeypatch, path, "--grow")
    start(monkeypatch, path, "--lr", "0.01")
    assert trained[2:] == [
        (None, 0, recall.LR, True),
        (4, 0, recall.LR, True),
        (None, 0, 0.01, False),
        (4, 0, 0.01, False),
    ]
    assert more["runs"][:2] == record["runs"]
    assert more["command"].count("python benchmarks/bench_recall.py") == 2

    path.write_text(json.dumps({**record, "torch": "1.0"}))
    with pytest.raises(SystemExit, match="made with another torch; give another file"):
        start(monkeypatch, path)


def test_memory_is_that_of_the_step_alone():
    torch.zeros(100 << 20)  # a peak of 400 MiB, and freed
    assert 1 < recall.extra_memory(1024, None) < 300


@pytest.mark.slow
def test_fresh_processes_measure():
    (full, nearest) = recall.fresh("time", 64, [None, 4])
    assert (full["k"], nearest["k"], full["tokens"]) == (None, 4, 64)
    assert recall.fresh("memory", 1024, [None]) > 1  # a step of 8,192 tokens has activations of more than a MiB
