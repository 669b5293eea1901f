"""Comparisons: the numbers against hand-made ones, the files, and what is refused."""

import json
import math

import pytest

from convnn import ConvNNError
from convnn.train.study.compare import compare, difference
from convnn.train.study.sweep import write_comparison
from convnn.train.study.words import notes, value, verdict

from ...command_line import run


def write_run(folder, *, accuracy, seed=0, seconds=2.0, flops=1000, status="finished", **settings):
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text("{}")
    epochs = [{"epoch": n, "val_accuracy": accuracy - 0.1 / n, "seconds": seconds} for n in (1, 2)]
    result = {
        "status": status, "settings": {"seed": seed, "lr": 0.1, "out": str(folder), **settings}, "epochs": epochs,
        "best": epochs[-1] | {"val_loss": 1.0}, "test": {"test_accuracy": accuracy, "test_loss": 2 - accuracy},
        "parameters": 10, "flops": flops, "provenance": {"machine": "one", "threads": "1"},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


@pytest.fixture
def study(tmp_path):
    for name, accuracies in {"conv": (0.80, 0.82, 0.81), "k=10": (0.86, 0.85), "k=9": (0.5,)}.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(tmp_path / "study" / name / f"seed-{seed}", accuracy=accuracy, seed=seed)
    return tmp_path / "study"


def test_means_deviations_and_differences(study):
    results = compare([str(study)], baseline="conv")
    conv, nine, ten = results["variants"]
    assert [variant["name"] for variant in results["variants"]] == ["conv", "k=9", "k=10"]
    assert (conv["n"], nine["n"], ten["n"]) == (3, 1, 2)
    assert conv["mean"] == pytest.approx(0.81)
    assert conv["std"] == pytest.approx(0.01)
    assert conv["difference"] is None
    assert ten["difference"]["mean"] == pytest.approx(0.045)
    assert ten["difference"]["clear"]
    assert nine["std"] is None
    assert (nine["difference"]["low"], nine["difference"]["high"], nine["difference"]["clear"]) == (None, None, False)
    assert (conv["seconds"], conv["training_seconds"], conv["flops"]) == (2.0, 4.0, 1000)
    assert conv["curve"] == pytest.approx([0.71, 0.76])


def test_welch_s_interval_is_that_of_the_textbook():
    one, other = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8]

    def moments(values):
        mean = sum(values) / len(values)
        return mean, sum((x - mean) ** 2 for x in values) / (len(values) - 1) / len(values)

    (mean_one, one_error), (mean_other, other_error) = moments(one), moments(other)
    error = one_error + other_error
    freedom = error**2 / (one_error**2 / 5 + other_error**2 / 6)
    assert 7 < freedom < 9
    found = difference(one, other)
    assert found.mean == pytest.approx(mean_one - mean_other)
    quantile = (found.high - found.mean) / math.sqrt(error)
    assert 2.262 < quantile < 2.365  # Student's 97.5 % quantiles at 9 and at 7 degrees of freedom
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert not found.clear


def test_equal_values_have_an_interval_of_no_width():
    found = difference([0.5, 0.5], [0.25, 0.25])
    assert (found.mean, found.low, found.high, found.clear) == (0.25, 0.25, 0.25, True)


def test_losses_are_better_when_they_are_lower(study):
    results = compare([str(study)], baseline="conv", metric="test_loss")
    ten = results["variants"][2]
    assert value(ten, "test_loss") == "1.145 ± 0.007"
    assert verdict(ten, "test_loss") == "better"
    assert verdict(results["variants"][1], "test_loss") == "unknown"


def test_patterns_single_runs_and_equal_names(study, tmp_path):
    write_run(tmp_path / "other" / "conv" / "seed-0", accuracy=0.4, lr=0.2)
    write_run(tmp_path / "single", accuracy=0.3)
    results = compare([f"{study}/k=*", str(tmp_path / "other"), str(study / "conv"), str(tmp_path / "single")])
    names = [variant["name"] for variant in results["variants"]]
    assert names == ["k=10", "k=9", "other/conv", "study/conv", "single"]
    assert results["baseline"] == "k=10"


def test_a_folder_of_seeds_is_its_runs_and_not_their_sum(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "run" / f"seed-{seed}", accuracy=0.5 + seed / 10, seed=seed)
    (tmp_path / "run" / "settings.yaml").write_text("{}")
    (tmp_path / "run" / "result.json").write_text('{"status": "finished", "seeds": {}}')
    (variant,) = compare([str(tmp_path / "run")])["variants"]
    assert (variant["name"], variant["n"], variant["seeds"]) == ("run", 2, [0, 1])


def test_unfinished_runs_are_left_out_and_named(study):
    write_run(study / "conv" / "seed-9", accuracy=0.1, seed=9, status="interrupted")
    results = compare([str(study)])
    assert results["variants"][0]["n"] == 3
    assert notes(results) == [
        "One run has no spread, and its difference no interval: k=9.",
        f"Left out, not finished: {study}/conv/seed-9 (interrupted).",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "^runs: expected one run for each seed of a variant, got 4 runs of 'conv'"),
        ({"seed": 5, "lr": 0.3}, "^runs: expected one lr in all runs of 'conv', got 0.3 in "),
    ],
)
def test_runs_of_a_variant_differ_in_their_seed_alone(study, change, message):
    write_run(study / "conv" / "seed-5", accuracy=0.5, **change)
    with pytest.raises(ConvNNError, match=message):
        compare([str(study)])


def test_nothing_finished_and_unknown_baselines(study, tmp_path):
    write_run(tmp_path / "a", accuracy=0.1, status="running")
    with pytest.raises(ConvNNError, match=r"^runs: expected folders with finished runs .*a: running\); train first"):
        compare([str(tmp_path / "a")])
    with pytest.raises(ConvNNError, match=r"^baseline: expected one of 'conv', 'k=9', 'k=10', got 'con'"):
        compare([str(study)], baseline="con")


def test_the_command_writes_table_figure_and_page(study, tmp_path, capsys):
    out = tmp_path / "comparison"
    status, printed, err = run(capsys, "compare", str(study), "--baseline", "conv", "--out", str(out))
    assert (status, err) == (0, "")
    assert "81.00 ± 1.00 %" in printed
    assert "no interval" in printed
    assert json.loads((out / "comparison.json").read_text())["baseline"] == "conv"
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "comparison.html").read_text()
    assert "<svg" in page.split('class="drawing"')[1]
    assert "+4.50 [" in page
    assert "One run has no spread" in page
    assert page.count('<th scope="row">') == 3
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")  # self-contained


def test_texts_of_a_study_are_escaped(study, tmp_path):
    about = {"title": "<b>Tiny</b>", "source": "a & b"}
    write_comparison([str(study)], out=tmp_path / "out", about=about)
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "&lt;b&gt;Tiny&lt;/b&gt;" in page
    assert "a &amp; b" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compare",), "runs: expected a value, got none"),
        (("compare", "nowhere"), "runs: expected folders that exist, or patterns, got 'nowhere'; check the path"),
        (("compare", ".", "--metric", "accuracy"), "--metric: expected one of 'test_accuracy'"),
        (("sweep",), "study: expected a value, got none"),
        (("sweep", "vgg11_k", "--cpus", "0"), "--cpus: expected a number above 0, got 0"),
        (("sweep", "vgg11_k", "--gpus", "1.5"), "--gpus: expected a share of one GPU, or a whole number, got 1.5"),
        (("sweep", "vgg11_kk"), "study: expected one of 'cifar10_layers'"),
    ],
)
def test_wrong_options_are_one_line(arguments, message, capsys):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
