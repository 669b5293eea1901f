"""Saved and loaded by a folder, by huggingface_hub's mixin, or by one and the other, a model is the same."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import convnn
from convnn.errors import ConvNNError, MissingExtraError
from convnn.models import config_of, create_model, from_pretrained, save_pretrained
from convnn.models.hub import PretrainedModel
from convnn.models.pretrained import CONFIG, WEIGHTS

MODELS = {
    "small, random": ("small_cnn", {"num_classes": 3, "layer": "hybrid", "candidates": "random:20"}),
    "resnet, grid": ("resnet10t", {"num_classes": 3, "layer": "convnn", "candidates": "grid:3", "k": 4}),
    "vit, k-NN": ("vit_tiny", {"num_classes": 3, "layer": "knn", "stem": "cifar", "embed_dim": 12, "depth": 1,
                               "num_heads": 2}),
    "published vit": ("vit_tiny_convnn_all", {"embed_dim": 12, "depth": 1, "image_size": 32, "k": 3}),
}  # fmt: skip


def make(name: str = "small, random") -> nn.Module:
    """Make a model that has seen images, so that its statistics are not those of every new one."""
    torch.manual_seed(1)
    kind, options = MODELS[name]
    model = create_model(kind, **options)
    with torch.no_grad():
        model(images(4))
    return model.eval()


def images(count: int = 2, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7)).to(dtype)


def logits(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    with torch.no_grad():
        return model(images(dtype=dtype))


def by_function(model: nn.Module, folder: Path) -> None:
    save_pretrained(model, folder)


def by_mixin(model: nn.Module, folder: Path) -> None:
    PretrainedModel(model).save_pretrained(folder)


@pytest.mark.parametrize("load", [from_pretrained, PretrainedModel.from_pretrained], ids=["function", "mixin"])
@pytest.mark.parametrize("save", [by_function, by_mixin])
@pytest.mark.parametrize("name", ["small, random", "vit, k-NN"])
def test_either_way_loads_what_either_way_saved(name, save, load, tmp_path) -> None:
    model = make(name)
    save(model, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_have_the_names_of_the_model(name, tmp_path) -> None:
    model = make(name)
    save_pretrained(model, tmp_path)
    by_mixin(model, tmp_path / "mixin")
    state = model.state_dict()
    for folder in (tmp_path, tmp_path / "mixin"):
        weights = load_file(folder / WEIGHTS)
        assert weights.keys() == state.keys()
        assert all(torch.equal(weights[key], value) for key, value in state.items())
    loaded = from_pretrained(tmp_path)
    assert str(loaded) == str(model)
    assert config_of(loaded) == config_of(model)
    assert torch.equal(logits(loaded), logits(model))


def test_the_folder_holds_two_files_and_the_mixin_adds_a_card(tmp_path) -> None:
    by_function(make(), tmp_path / "function")
    by_mixin(make(), tmp_path / "mixin")
    assert {path.name for path in (tmp_path / "function").iterdir()} == {CONFIG, WEIGHTS}
    assert {path.name for path in (tmp_path / "mixin").iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    assert len({path.stat().st_mode for path in (tmp_path / "function").iterdir()}) == 1
    config = json.loads((tmp_path / "mixin" / CONFIG).read_text())
    assert config.keys() == {"format_version", "convnn_version", "architecture", "eval_seeds"}
    assert config["convnn_version"] == convnn.__version__


def test_a_new_classifier_is_saved_with_the_model(tmp_path) -> None:
    model = make("resnet, grid")
    model.reset_classifier(7)
    loaded = from_pretrained(save_pretrained(model, tmp_path))
    assert logits(loaded).shape == (2, 7)
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("name", ["small, random", "vit, k-NN", "published vit"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept_unless_asked(name, dtype, tmp_path) -> None:
    model = make(name).to(dtype)
    loaded = from_pretrained(save_pretrained(model, tmp_path))
    tensors = dict(model.named_buffers()) | dict(model.named_parameters())
    for key, value in (*loaded.named_parameters(), *loaded.named_buffers()):
        assert value.dtype == tensors[key].dtype, key
        assert torch.equal(value, tensors[key]), key
    assert torch.equal(logits(loaded, dtype), logits(model, dtype))
    asked = from_pretrained(tmp_path, dtype=torch.float32)
    assert {value.dtype for value in asked.parameters()} == {torch.float32}


def test_mixed_dtypes_are_kept(tmp_path) -> None:
    model = make()
    model.body.to(torch.bfloat16)
    loaded = from_pretrained(save_pretrained(model, tmp_path))
    assert {key: value.dtype for key, value in loaded.state_dict().items()} == {
        key: value.dtype for key, value in model.state_dict().items()
    }


def test_tensors_that_share_memory(tmp_path) -> None:
    """The format has no word for sharing; what was shared is written twice, and loads as equal weights."""
    model = make()
    model.body[1][0].conv.weight = model.body[0][0].conv.weight
    model.body[1][0].mix.weight.data = model.body[0][0].mix.weight.data.view_as(model.body[1][0].mix.weight)
    loaded = from_pretrained(save_pretrained(model, tmp_path))
    assert torch.equal(loaded.body[1][0].conv.weight, loaded.body[0][0].conv.weight)
    assert torch.equal(logits(loaded), logits(model))


def test_channels_last(tmp_path) -> None:
    model = make()
    expected = logits(model)
    loaded = from_pretrained(save_pretrained(model.to(memory_format=torch.channels_last), tmp_path))
    assert torch.equal(logits(loaded), expected)


def test_random_candidates_are_drawn_as_before(tmp_path) -> None:
    model = make()
    for seed, part in enumerate(part for part in model.modules() if hasattr(part, "eval_seed")):
        part.eval_seed = 40 + seed
    expected = logits(model)
    assert not torch.equal(expected, logits(make())), "other seeds are other draws"
    assert torch.equal(logits(from_pretrained(save_pretrained(model, tmp_path))), expected)


def test_neither_changes_the_model_nor_random_numbers(tmp_path) -> None:
    model = make().train()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    save_pretrained(model, tmp_path)
    from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_saving_again_replaces_what_was_there(tmp_path) -> None:
    save_pretrained(make("vit, k-NN"), tmp_path)
    model = make()
    assert torch.equal(logits(from_pretrained(save_pretrained(model, tmp_path))), logits(model))
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_pretrained(make(), tmp_path_factory.mktemp("saved") / "small")


# -------------------------------------------------------------------------------------------------------------- the hub
def test_a_model_of_the_hub_is_downloaded_file_by_file(saved, monkeypatch) -> None:
    asked = []

    def download(*, repo_id: str, filename: str, **options: object) -> str:
        asked.append((repo_id, filename, options))
        return str(saved / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded = from_pretrained("someone/model", revision="v1", local_files_only=True)
    options = {"revision": "v1", "local_files_only": True}
    assert asked == [("someone/model", CONFIG, options), ("someone/model", WEIGHTS, options)]
    assert torch.equal(logits(loaded), logits(from_pretrained(saved)))


@pytest.mark.parametrize("name", ["someone/model", "a/b/c", "no such folder"])
def test_a_name_that_is_neither_a_folder_nor_on_the_hub(name, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConvNNError, match=rf"^folder_or_repo_id: .* got '{name}' \(no such folder here, and from the hub:"
    ):
        from_pretrained(name, cache_dir=tmp_path, local_files_only=True)


def test_an_option_that_there_is_not(saved) -> None:
    with pytest.raises(ConvNNError, match=r"^option: .* got 'revison'; did you mean 'revision'"):
        from_pretrained(saved, revison="v1")
    with pytest.raises(ConvNNError, match=r"^option: .* got 'num_classes'"):
        PretrainedModel.from_pretrained(saved, num_classes=5)


def test_push_to_hub_uploads_a_folder_that_loads(saved, monkeypatch, tmp_path) -> None:
    calls = []

    class Api:
        def __init__(self, token: str | None = None) -> None:
            self.token = token

        def create_repo(self, *, repo_id: str, **_: object) -> object:
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, **_: object) -> str:
            calls.append((repo_id, commit_message))
            shutil.copytree(folder_path, tmp_path / "hub")
            return "address of the commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    wrapped = PretrainedModel.from_pretrained(saved)
    address = wrapped.push_to_hub("someone/small", commit_message="first", model_card_kwargs={"about": "On digits."})
    assert address == "address of the commit"
    assert calls == [("someone/small", "first")]
    assert torch.equal(logits(from_pretrained(tmp_path / "hub")), logits(wrapped))
    assert "On digits." in (tmp_path / "hub" / "README.md").read_text()


def test_the_model_card_says_what_it_is_and_how_to_load_it(tmp_path) -> None:
    PretrainedModel(make()).save_pretrained(tmp_path, model_card_kwargs={"repo_id": "someone/small"})
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "convnn"
    assert {"convnn", "image-classification"} <= set(card.data.tags)
    assert "# small_cnn" in card.text
    assert 'from_pretrained("someone/small")' in card.text
    code = card.text.split("```python\n")[1].split("```")[0]
    rebuilt = eval(code, {"convnn": __import__("convnn.models")})
    assert config_of(rebuilt) == config_of(make())


def test_a_wrapped_model_trains_and_answers_as_the_model(tmp_path) -> None:
    model = make()
    wrapped = PretrainedModel(model)
    assert torch.equal(logits(wrapped), logits(model))
    assert config_of(wrapped) == config_of(model)
    with pytest.raises(ConvNNError, match=r"^model: expected one that create_model made"):
        PretrainedModel(nn.Linear(2, 2))
    wrapped.train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_missing_packages_are_named(saved, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors.torch", None)
        for call in (lambda: from_pretrained(saved), lambda: save_pretrained(make(), saved)):
            with pytest.raises(MissingExtraError, match=r'safetensors is not installed.*pip install "\.\[vision\]"'):
                call()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", None)
        patch.delitem(sys.modules, "convnn.models.hub")
        with pytest.raises(MissingExtraError, match="huggingface_hub is not installed"):
            __import__("convnn.models.hub")
        with pytest.raises(MissingExtraError, match="huggingface_hub is not installed"):
            from_pretrained("someone/model")
        assert torch.equal(logits(from_pretrained(saved)), logits(from_pretrained(saved)))
