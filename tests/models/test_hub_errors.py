"""What cannot be saved is refused when it is saved, and what cannot be loaded is told in one line."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import convnn
from convnn.errors import ConvNNError
from convnn.models import create_model, from_pretrained, save_pretrained, swap_layers
from convnn.models.pretrained import CONFIG, WEIGHTS


def make() -> nn.Module:
    torch.manual_seed(1)
    return create_model("small_cnn", num_classes=3, layer="hybrid", candidates="random:20").eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_pretrained(make(), tmp_path_factory.mktemp("saved") / "small")


# ------------------------------------------------------------------------------------------------- what cannot be saved
def other_head(model: nn.Module) -> nn.Module:
    model.head = nn.Linear(model.head.in_features, 5)
    return model


def other_k(model: nn.Module) -> nn.Module:
    """The same weights, another function."""
    for part in model.modules():
        if hasattr(part, "candidates") and hasattr(part, "k"):
            part.candidates = convnn.Random(10)
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Linear(2, 2), "^model: expected one that create_model made"),
        (lambda: other_head(make()), r"^model: expected what create_model\(.*\) builds, got head.weight of shape"),
        (
            lambda: other_k(make()),
            r"^model: .* builds, got stem.0.convnn ConvNN2d\(.*r=10.*r=20.*\); make every change",
        ),
        (lambda: swap_layers(create_model("vit_tiny", embed_dim=12, depth=1, num_heads=2), "knn"), "^model: expected"),
        (lambda: make().to("meta"), "^model: expected one with weights, got stem.0.conv.* on the meta device"),
    ],
    ids=["not created", "another head", "another search", "converted since", "no weights"],
)
def test_what_could_not_be_loaded_is_not_saved(model, words, tmp_path) -> None:
    with pytest.raises(ConvNNError, match=words) as refused:
        save_pretrained(model(), tmp_path / "folder")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "folder").exists()


def test_an_option_that_json_cannot_hold_is_named(tmp_path) -> None:
    model = make()
    model.convnn_config["branch_ratio"] = float("nan")
    with pytest.raises(ConvNNError, match=r"^model: expected options that JSON can hold, got branch_ratio=nan"):
        save_pretrained(model, tmp_path / "folder")


def test_how_a_layer_runs_is_no_change(tmp_path) -> None:
    model = make()
    for part in model.modules():
        if hasattr(part, "impl"):
            part.impl = "dense"
    save_pretrained(model, tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConvNNError, match=r"^folder: expected a folder that can be made, got .*; choose another$"):
        save_pretrained(make(), tmp_path / "file")


# ------------------------------------------------------------------------------------------------ what cannot be loaded
def change(**entries: object):
    """Change entries of config.json, or take one away (None)."""

    def apply(folder: Path) -> None:
        path = folder / CONFIG
        config = {**json.loads(path.read_text()), **entries}
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return apply


def change_architecture(**entries: object):
    def apply(folder: Path) -> None:
        path = folder / CONFIG
        config = json.loads(path.read_text())
        config["architecture"].update(entries)
        path.write_text(json.dumps(config))

    return apply


def change_weights(**entries: Tensor | None):
    def apply(folder: Path) -> None:
        weights = {**load_file(folder / WEIGHTS), **{key.replace("__", "."): value for key, value in entries.items()}}
        save_file({key: value for key, value in weights.items() if value is not None}, folder / WEIGHTS)

    return apply


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps({"weights": 1}))


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")


DAMAGES = {
    "no config": (lambda f: (f / CONFIG).unlink(), "folder_or_repo_id: expected a folder .* without config.json"),
    "no weights": (only_a_pickle, "folder_or_repo_id: expected a folder .* without model.safetensors; check the path"),
    "no JSON": (lambda f: (f / CONFIG).write_text("{"), "config.json: expected JSON, got .*; restore the file"),
    "no object": (lambda f: (f / CONFIG).write_text("[]"), "config.json: expected the keywords .* got list; give"),
    "another library's": (change(architecture=None), "config.json: expected the keywords of create_model .* got none"),
    "newer": (change(format_version=2, convnn_version="9.0"),
              r"config.json: expected format_version 1 or below, got 2; update convnn \(.* version 9.0\)"),
    "no version": (change(format_version=None), "config.json: expected format_version 1 or below, got None; update"),
    "unknown key": (change(eval_seed={}), "config.json: expected one of .* did you mean 'eval_seeds'"),
    "seeds": (change(eval_seeds={"a": "x"}), "config.json: expected a seed per layer under 'eval_seeds', got {'a'"),
    "unknown option": (change_architecture(branch_ration=1), "option: expected .* did you mean 'branch_ratio'"),
    "unknown model": (change_architecture(name="hf-hub:someone/model"), "model: expected one of .* 'hf-hub:"),
    "weights elsewhere": (change_architecture(pretrained=True),
                          "config.json: expected an architecture alone, got 'pretrained'"),
    "a checkpoint elsewhere": (change_architecture(checkpoint_path="evil.pth"),
                               "config.json: expected an architecture alone, got 'checkpoint_path'"),
    "another shape": (change_weights(head__weight=torch.zeros(5, 32)),
                      r"model.safetensors: .* got head.weight of shape \(5, 32\) instead of \(3, 32\); the two files"),
    "a weight less": (change_weights(head__bias=None), "model.safetensors: .* got weights without head.bias; the two"),
    "weights more": (change_weights(a=torch.zeros(1), b=torch.zeros(1)), "got weights with a and 1 more; the two"),
    "pickle": (pickled, "model.safetensors: expected a safetensors file, got .*; save or download it again"),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:1000]),
            "model.safetensors: expected a safetensors file, got"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_reported_in_one_line(name, saved, tmp_path) -> None:
    damage, words = DAMAGES[name]
    folder = shutil.copytree(saved, tmp_path / "small")
    damage(folder)
    with pytest.raises(ConvNNError, match=words) as refused:
        from_pretrained(folder)
    assert "\n" not in str(refused.value)


def test_not_strict_takes_what_fits_by_name(saved, tmp_path) -> None:
    folder = shutil.copytree(saved, tmp_path / "small")
    change_weights(head__bias=None, more=torch.zeros(1))(folder)
    loaded = from_pretrained(folder, strict=False)
    assert torch.equal(loaded.head.weight, load_file(saved / WEIGHTS)["head.weight"])
    change_weights(head__weight=torch.zeros(5, 32))(folder)
    with pytest.raises(ConvNNError, match=r"got head.weight of shape \(5, 32\)"):
        from_pretrained(folder, strict=False)


def test_a_path_that_is_no_folder(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", str(tmp_path / "file"), tmp_path / "nowhere"):
        with pytest.raises(ConvNNError, match=r"^folder_or_repo_id: .*, which is no folder; give the folder$"):
            from_pretrained(path)
