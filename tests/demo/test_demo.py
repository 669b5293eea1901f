import html.parser
import io
import json
import re

import pytest
import torch
from PIL import Image
from rich.console import Console

from convnn.accounting import count_flops, count_parameters
from convnn.demo import run as demo
from convnn.demo.digits import load_digits_splits
from convnn.demo.run import run_demo
from convnn.demo.settings import DemoSettings
from convnn.demo.spectrum import EXPERIMENTS, TrainingPlan, base_network, build, identities
from convnn.demo.training import Task, load_weights, train_experiment
from convnn.demo.workers import one_thread

TINY = TrainingPlan({"cnn": 2, "transformer": 2}, {"cnn": 4e-3, "transformer": 3e-3}, images=64)
VOID = {"meta", "link", "br", "img", "line", "circle", "polyline"}


class Balanced(html.parser.HTMLParser):
    """Collects tags, and what was left open or closed too often."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.wrong = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    terminal = io.StringIO()
    results = run_demo(DemoSettings(quick=True, out=str(out), seed=3), console=Console(file=terminal, width=100))
    return out, results, terminal.getvalue()


def test_the_quick_demo_writes_all_its_results(quick):
    out, results, _ = quick
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (results["status"], results["quick"], results["seeds"]) == ("finished", True, [3])
    assert [row["key"] for row in results["rows"]] == [experiment.key for experiment in EXPERIMENTS]
    for row in results["rows"]:
        assert 0 < row["accuracy"]["mean"] <= 1
        assert row["accuracy"]["std"] is None
        assert row["parameters"] > 0 < row["flops"]
        assert row["seconds"] > 0
        assert len(row["runs"][0]["epochs"]) == results["plan"]["epochs"][row["family"]]


def test_the_spatial_network_is_the_convolutional_one_to_the_end(quick):
    rows = {row["key"]: row for row in quick[1]["rows"]}
    conv, spatial = (rows[key]["runs"][0] for key in ("conv", "spatial"))
    assert spatial["test_accuracy"] == pytest.approx(conv["test_accuracy"], abs=0.01)
    for ours, theirs in zip(spatial["epochs"], conv["epochs"], strict=True):  # they may round differently
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-3)
    assert rows["conv"]["parameters"] == rows["spatial"]["parameters"]
    assert rows["conv"]["flops"] == rows["spatial"]["flops"]


def test_the_report_is_one_sound_page(quick):
    page = (quick[0] / "report.html").read_text(encoding="utf-8")
    parser = Balanced()
    parser.feed(page)
    assert (parser.open, parser.wrong) == ([], [])
    assert "$" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    outside = [
        value
        for _, a in parser.tags
        for key, value in a.items()
        if key in ("src", "href") and not value.startswith("data:")
    ]
    assert outside == []
    assert "http" not in page.replace("http-equiv", "")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in parser.tags
    assert "prefers-color-scheme: dark" in page
    assert all(attributes.get("alt") for tag, attributes in parser.tags if tag == "img")
    assert sum(tag == "img" for tag, _ in parser.tags) == len(EXPERIMENTS)
    assert sum(tag == "polyline" for tag, _ in parser.tags) == len(EXPERIMENTS)


def test_the_report_says_what_it_must(quick):
    out, results, _ = quick
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "This is a quick run" in page
    for row in results["rows"]:
        assert row["title"] in page
        assert f"{row['parameters']:,}" in page
        assert f"{100 * row['accuracy']['mean']:.1f} %" in page
    assert page.count("✓ same") == len(results["identities"]) == 8
    assert "the same test accuracy" in page
    for name in ("torch", "date", "command", "machine"):
        assert results["provenance"][name] in page.replace("&#x27;", "'").replace("&quot;", '"')


def test_the_terminal_shows_the_same_table(quick):
    _, results, terminal = quick
    for row in results["rows"]:
        assert row["title"] in terminal
        assert f"{100 * row['accuracy']['mean']:.1f} %" in terminal
    assert "Quick: too few images and epochs" in " ".join(terminal.split())
    assert "report.html" in terminal
    assert "NOT THE SAME" not in terminal


def test_the_picture_for_the_readme(quick):
    assert Image.open(quick[0] / "neighbours.png").size == (1650, 600)


def test_what_must_be_the_same_is():
    images = load_digits_splits(0)["test"].images[:20]
    checked = identities(images, seed=1)
    assert len(checked) == 8
    assert all(identity.holds for identity in checked)
    assert max(identity.difference for identity in checked if "search" in identity.text) > 0


@pytest.mark.parametrize("key", ["convnn", "hybrid", "convnn_attention"])
def test_equal_seeds_train_to_equal_networks(key):
    (one, weights), (other, same_weights) = (train_experiment(Task(key, 5, 0, TINY), lambda *_: None) for _ in range(2))
    assert one["test_accuracy"] == other["test_accuracy"]
    assert [epoch["train_loss"] for epoch in one["epochs"]] == [epoch["train_loss"] for epoch in other["epochs"]]
    assert weights == same_weights
    different, _ = train_experiment(Task(key, 6, 0, TINY), lambda *_: None)
    assert different["epochs"][0]["train_loss"] != one["epochs"][0]["train_loss"]


def test_trained_weights_load_again():
    experiment = next(experiment for experiment in EXPERIMENTS if experiment.key == "knn")
    reports = []
    run, weights = train_experiment(Task("knn", 0, 0, TINY), lambda name, steps: reports.append(steps))
    model = load_weights(build(experiment, seed=9), weights)
    test = load_digits_splits(0, images=64)["test"]
    with torch.no_grad():
        accuracy = (model(test.images).argmax(1) == test.labels).float().mean().item()
    assert accuracy == pytest.approx(run["test_accuracy"])
    assert sum(reports) == 2


def test_networks_of_a_family_start_from_the_same_weights():
    for experiment in EXPERIMENTS:
        base = build(EXPERIMENTS[0] if experiment.family == "cnn" else EXPERIMENTS[5], seed=2)
        network = build(experiment, seed=2)
        theirs = dict(network.named_parameters())
        shared = [name for name, p in base.named_parameters() if name in theirs and theirs[name].shape == p.shape]
        assert "head.weight" in shared
        body = [name for name in shared if experiment.family == "transformer" or not name.startswith("body")]
        assert all(torch.equal(theirs[name], base.get_parameter(name)) for name in body)


def test_costs_of_the_base_networks():
    x = torch.zeros(1, 1, 8, 8)
    cnn = base_network("cnn")
    assert count_flops(cnn, x) == 2 * 64 * 9 * (32 + 2 * 32 * 32) + 2 * 32 * 10
    assert count_parameters(cnn) == 9 * (32 + 2 * 32 * 32) + 3 * 64 + 330


def test_digits_are_split_by_the_seed_without_overlap():
    one, other = load_digits_splits(0), load_digits_splits(1)
    assert not torch.equal(one["test"].labels, other["test"].labels)
    assert {name: len(split.labels) for name, split in one.items()} == {"train": 1000, "val": 200, "test": 597}
    assert one["train"].images.mean().item() == pytest.approx(0, abs=1e-5)
    assert one["train"].images.std().item() == pytest.approx(1, abs=1e-5)
    total = sum(split.labels.bincount() for split in one.values())
    assert total.tolist() == sum(split.labels.bincount() for split in other.values()).tolist()


def test_the_whole_demo_shares_its_runs_among_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "FULL", TINY)
    monkeypatch.setattr(demo, "EXPERIMENTS", (EXPERIMENTS[0], EXPERIMENTS[4]))
    monkeypatch.setattr(demo, "available_cores", lambda: 2)
    results = run_demo(DemoSettings(out=str(tmp_path)), console=Console(file=io.StringIO()))
    assert results["seeds"] == [0, 1, 2]
    assert results["provenance"]["processes"] == "2"
    for row in results["rows"]:
        runs = row["runs"]
        assert [run["seed"] for run in runs] == [0, 1, 2]
        accuracies = [run["test_accuracy"] for run in runs]
        assert row["accuracy"]["mean"] == pytest.approx(sum(accuracies) / 3)
        assert row["accuracy"]["std"] == pytest.approx(torch.tensor(accuracies, dtype=torch.float64).std().item())
        with one_thread():
            alone, _ = train_experiment(Task(row["key"], 1, 0, TINY), lambda *_: None)
        assert alone["test_accuracy"] == runs[1]["test_accuracy"]
        assert [e["train_loss"] for e in alone["epochs"]] == [e["train_loss"] for e in runs[1]["epochs"]]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "This is a quick run" not in page
    assert "mean ± standard deviation over 3 seeds" in page
    assert "A difference within the spread is no difference" in page
    assert page.count("<details") == 3
    assert "→" in page
