"""``convnn export`` from the command line, and its settings."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from convnn.export import ExportSettings
from convnn.models import create_model, save_pretrained

from ..command_line import run


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    return save_pretrained(create_model("small_cnn", num_classes=3, layer="hybrid", image_size=8), tmp_path / "small")


def test_it_says_what_it_does_a_line_each(folder, capsys) -> None:
    status, out, err = run(capsys, "export", str(folder))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["Loading", "Tracing", "Writing", "Running", "Wrote"]
    assert re.search(
        r"model\.onnx \(onnx, opset \d+, 0\.\d MB\), images \(any, 3, 8, 8\); largest difference", lines[-1]
    )
    assert (folder / "model.onnx").is_file()


def test_every_option_arrives(folder, capsys, tmp_path) -> None:
    out = tmp_path / "new" / "small.pt2"
    options = ("--format", "torch-export", "--out", str(out), "--image-size", "12", "--batch-size", "2")
    status, shown, _ = run(capsys, "export", str(folder), *options, "--verify", "false")
    assert status == 0
    assert shown.splitlines()[-1].endswith("(torch-export, 0.4 MB), images (2, 3, 12, 12); not compared")
    assert torch.export.load(out).module()(torch.zeros(2, 3, 12, 12)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("nowhere",),
            "checkpoint: expected a folder of save_pretrained or convnn train, or a .ckpt file, got 'nowhere'",
        ),
        (
            (".",),
            "checkpoint: expected a folder of save_pretrained or of convnn train, or a .ckpt file in a run's folder",
        ),
        ((".", "--format", "onx"), "--format: expected one of 'onnx', 'torch-export', got 'onx'; did you mean 'onnx'?"),
        (
            (".", "--out", "model.pt"),
            "--out: expected a file name that ends with '.onnx' (format onnx), got 'model.pt'",
        ),
        ((".", "--opset", "17"), "--opset: expected a whole number of at least 18, got 17"),
        ((".", "--format", "torch-export", "--opset", "20"), "--opset: expected none (it is ONNX's), got 20"),
        ((".", "--batch-size", "0"), "--batch-size: expected a whole number of at least 1, got 0"),
        ((".", "--image-size", "0"), "--image-size: expected a whole number of at least 1, got 0"),
        (
            (".", "--formatt", "onnx"),
            "--formatt: expected an option of this command, got an unknown one; did you mean --format?",
        ),
        ((), "checkpoint: expected a value, got none; write convnn export CHECKPOINT"),
    ],
)
def test_wrong_options_are_named(options, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "export", *options)
    assert (status, out.replace("Loading .\n", "")) == (2, "")
    assert re.match(rf"convnn( export)?: error: {re.escape(message)}", err)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"checkpoint": "runs/a"}, "runs/a/model.onnx"),
        ({"checkpoint": "runs/a/best.ckpt"}, "runs/a/model.onnx"),
        ({"checkpoint": "runs/a/best.ckpt", "format": "torch-export"}, "runs/a/model.pt2"),
        ({"checkpoint": "runs/a", "out": "b.onnx"}, "b.onnx"),
    ],
)
def test_where_the_file_goes(given, path) -> None:
    assert str(ExportSettings(**given).path) == path


def test_its_options_need_nothing_heavy() -> None:
    code = "import sys, convnn.export.settings\n"
    code += "print([n for n in ('timm', 'onnx', 'onnxruntime', 'onnxscript', 'lightning') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
