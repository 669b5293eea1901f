import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convnn.accounting import count_flops, count_parameters
from convnn.accounting.settings import ProfileSettings, TableSettings
from convnn.models import create_model

from ..command_line import run

SMALL = ("profile", "small_cnn", "--layer", "hybrid", "--k", "5", "--candidates", "random:16", "--branch-ratio", "0.25")


def test_profile_prints_what_the_model_costs(capsys):
    status, out, _ = run(capsys, *SMALL, "--runs", "2")
    model = create_model("small_cnn", layer="hybrid", k=5, candidates="random:16", branch_ratio=0.25)
    assert status == 0
    assert "small_cnn" in out
    assert "1 x 3 x 32 x 32" in out
    assert f"{count_parameters(model):,}" in out
    assert f"{count_flops(model, torch.randn(1, 3, 32, 32)):,}" in out
    assert "FLOPs, executed" in out
    assert "activation memory" in out
    assert "n = 2" in out


def test_options_reach_the_model(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["convnn", "profile", "small_cnn"])
    options = ("--similarity", "blend:0.5", "--num-classes", "7", "--image-size", "8", "--batch-size", "3")
    _, out, _ = run(capsys, *SMALL, *options, "--convention", "published", "--no-time", "--json", "-")
    values = json.loads(out)
    model = create_model(
        "small_cnn",
        layer="hybrid",
        k=5,
        candidates="random:16",
        branch_ratio=0.25,
        similarity="blend:0.5",
        num_classes=7,
    )
    assert values["parameters"] == count_parameters(model)
    assert values["inputs"] == [[3, 3, 8, 8]]
    assert values["convention"] == "published"
    assert values["flops"] == count_flops(model, torch.randn(3, 3, 8, 8), convention="published")
    assert values["milliseconds"] is None
    assert "rows" not in values
    assert values["provenance"]["command"] == "convnn profile small_cnn"


def test_layers_one_by_one(capsys):
    status, out, _ = run(capsys, *SMALL, "--per-layer", "--no-time", "--convention", "gather")
    assert status == 0
    assert "gather" in out
    assert all(name in out for name in ("stem.0", "body.0.0.convnn", "body.0.0.conv", "body.0.0.mix", "head", "total"))


def test_json_goes_to_a_file_and_the_table_to_the_terminal(capsys, tmp_path):
    file = tmp_path / "cost.json"
    status, out, _ = run(capsys, *SMALL, "--no-time", "--per-layer", "--json", str(file))
    values = json.loads(file.read_text())
    assert status == 0
    assert f"{values['flops']:,}" in out
    assert sum(row["flops"] for row in values["rows"]) == values["flops"]


def test_counting_without_computing(capsys):
    status, out, _ = run(capsys, "profile", "resnet50_hybrid_grid5", "--device", "meta", "--convention", "published")
    assert status == 0
    assert "26,474,760" in out
    assert "5,576,7" in out
    assert "milliseconds: not measured" in out.replace("\n", " ")


def test_a_saved_model(capsys, tmp_path):
    from convnn.models import save_pretrained

    model = create_model("small_cnn", num_classes=4, in_channels=1, layer="convnn", k=3)
    folder = tmp_path / "saved"
    save_pretrained(model, folder)
    status, out, _ = run(capsys, "profile", str(folder), "--no-time", "--json", "-")
    values = json.loads(out)
    assert status == 0
    assert values["model"] == "saved"
    assert values["parameters"] == count_parameters(model)
    assert values["inputs"] == [[1, 1, 32, 32]]
    assert values["flops"] == count_flops(model, torch.randn(1, 1, 32, 32))
    status, _, err = run(capsys, "profile", str(folder), "--k", "5")
    assert status == 2
    assert "--k: expected none for a saved model (it is made already), got 5; leave it out" in err


@pytest.mark.usefixtures("_headline")
def test_the_headline_table(capsys, tmp_path):
    file = tmp_path / "headline.json"
    status, out, _ = run(capsys, "table", "headline", "--json", str(file))
    assert status == 0
    lines = {name: cells for name, *cells in (re.split("  +", line.strip()) for line in out.splitlines())}
    assert lines["convolution"] == ["78.86", "25.583", "8.178", "25.583", "8.178", "8.178", "8.178"]
    assert lines["ConvNN, all"] == ["76.22", "25.557", "10.321", "25.557", "10.321", "13.327", "13.716"]
    assert lines["hybrid, all"] == ["79.42", "26.474", "10.655", "26.474", "10.655", "13.661", "13.646"]
    assert lines["hybrid, random 32"] == ["78.98", "26.474", "5.596", "26.474", "5.596", "8.602", "7.487"]
    assert lines["hybrid, grid 5x5"] == ["78.82", "26.474", "5.576", "26.474", "5.576", "8.582", "7.419"]
    assert "published" in out
    assert "gather" in out
    assert "executed" in out
    assert "theirs: published, the accuracy (top-1, %) too" in out
    rows = json.loads(file.read_text())["rows"]
    assert [row["published"]["top1"] for row in rows] == [78.86, 76.22, 79.42, 78.98, 78.82]
    assert rows[3]["parameters"] == 26_474_760
    assert set(rows[3]["flops"]) == {"executed", "gather", "published"}


@pytest.mark.usefixtures("_headline")
def test_the_headline_as_json(capsys):
    status, out, _ = run(capsys, "table", "headline", "--json", "-")
    assert status == 0
    assert len(json.loads(out)["rows"]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("profile",), "model: expected a value, got none"),
        (("profile", "resnet5O"), "model: expected one of .* or a model name of timm, got 'resnet5O'; did you mean"),
        (("profile", "small_cnn", "--layer", "hybird"), "--layer: expected one of .*; did you mean 'hybrid'"),
        (("profile", "small_cnn", "--convention", "true"), "--convention: expected one of 'executed', 'gather', 'pub"),
        (("profile", "small_cnn", "--candidates", "random"), "--candidates: expected random:NUMBER, got 'random'; say"),
        (("profile", "small_cnn", "--similarity", "cosin"), "--similarity: expected one of .* did you mean 'cosine'"),
        (("profile", "small_cnn", "--batch-size", "0"), "--batch-size: expected a whole number of at least 1, got 0"),
        (("profile", "small_cnn", "--k", "0"), "--k: expected a whole number of at least 1, got 0"),
        (
            ("profile", "small_cnn", "--device", "gpu"),
            "--device: expected one of 'cpu', 'cuda', 'mps', 'meta', got 'gpu'",
        ),
        (
            ("profile", "small_cnn", "--json", "no/x.json"),
            "--json: expected a file that can be written, got 'no/x.json'",
        ),
        (("profile", "small_cnn", "--per-layers"), "--per-layers: expected an option of this command, .* --per-layer?"),
        (("table",), "name: expected a value, got none"),
        (("table", "headlines"), "name: expected one of 'headline', got 'headlines'; did you mean 'headline'?"),
    ],
)
def test_wrong_options_are_named_and_end_with_two(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert re.search(message.replace("?", r"\?"), err.strip())
    assert len(err.strip().splitlines()) == 1


def test_a_device_that_is_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, err = run(capsys, "profile", "small_cnn", "--device", "cuda")
    assert status == 2
    assert "--device: expected a device that is there, got 'cuda'; use cpu" in err


def test_help_lists_every_option_and_imports_nothing_heavy():
    heavy = ("lightning", "timm", "sklearn", "matplotlib", "rich")
    code = "import sys, convnn.cli\ntry:\n    convnn.cli.main(['profile', '--help'])\nexcept SystemExit:\n    pass\n"
    code += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.rstrip().endswith("[]")
    for option in ("--layer", "--k", "--candidates", "--similarity", "--branch-ratio", "--num-classes", "--image-size",
                   "--batch-size", "--convention", "--per-layer", "--json", "--no-time"):  # fmt: skip
        assert option in done.stdout


def test_settings_are_values():
    assert ProfileSettings(model="small_cnn", k=3) == ProfileSettings(model="small_cnn", k=3)
    assert ProfileSettings(model="small_cnn", k=3).options() == {"k": 3}
    with pytest.raises(AttributeError):
        TableSettings(name="headline").name = "other"


@pytest.mark.usefixtures("_headline")
def test_the_documented_table_is_the_printed_one(capsys):
    page = (Path(__file__).resolve().parents[2] / "docs" / "accounting.md").read_text(encoding="utf-8")
    _, out, _ = run(capsys, "table", "headline")
    printed = [line.rstrip() for line in out.strip().splitlines()]
    assert "\n".join(printed) in page
