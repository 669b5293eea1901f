"""Exported as a program of torch.export, models load and run where convnn is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import convnn
from convnn.export import export
from convnn.export.program import NOTES

from .conftest import MODELS, exact_logits, steady_images

# Counting lines would double the time that torch takes to trace; other tests run the same ones.
pytestmark = pytest.mark.no_cover

ELSEWHERE = """
import sys
sys.modules.update(dict.fromkeys(("convnn", "timm", "torchvision")))  # not to be imported
import torch
images, expected = torch.load(sys.argv[2])
logits = torch.export.load(sys.argv[1]).module()(images)
print(float((logits - expected).abs().max()))
"""


@pytest.mark.parametrize("name", ["small, random", "vit, k-NN"])
def test_it_runs_in_another_process_without_convnn(name, exported, tmp_path) -> None:
    model, path = exported(name, "torch-export")
    images = steady_images(model, 3, MODELS[name][2])
    torch.save((images, exact_logits(model, images)), tmp_path / "case.pt")
    command = [sys.executable, "-c", ELSEWHERE, str(path), str(tmp_path / "case.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4


@pytest.mark.parametrize("name", ["small, random", "vit, k-NN"])
def test_it_has_plain_operators_and_says_nothing_of_this_machine(name, exported) -> None:
    _, path = exported(name, "torch-export")
    program = torch.export.load(path)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {target.namespace for target in called if isinstance(target, torch._ops.OpOverload)} == {"aten"}
    assert not any(isinstance(target, torch._ops.HigherOrderOperator) for target in called)
    content = path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(convnn.__file__).parent).encode() not in content


def test_any_number_of_images(exported) -> None:
    _, path = exported("small, random", "torch-export")
    loaded = torch.export.load(path).module()
    images = torch.randn(70, 3, 16, 16)
    assert loaded(images).shape == (70, 10)
    assert loaded(images[:1]).shape == (1, 10)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
def test_the_dtype_is_kept(dtype, close, tmp_path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(convnn.HybridConvNN2d(3, 8, k=5), nn.Flatten()).to(dtype).eval()
    exported = export(model, tmp_path / "model.pt2", format="torch-export", image_size=8)
    images = torch.randn(3, 3, 8, 8).to(dtype)
    logits = torch.export.load(exported.path).module()(images)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, model(images), rtol=close, atol=close)


def test_the_file_says_what_it_is(exported) -> None:
    _, path = exported("vit, k-NN", "torch-export")
    notes = {NOTES: ""}
    torch.export.load(path, extra_files=notes)
    said = json.loads(notes[NOTES])
    assert said["architecture"]["layer"] == "knn"
    assert said["convnn_version"] == convnn.__version__
