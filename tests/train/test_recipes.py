"""Every recipe is read by the command line's own parser, checked, built and run for two steps on generated images."""

import dataclasses

import pytest
import torch

from convnn import ConvNNError, cli
from convnn.arguments import parse
from convnn.models import CONFIGURATIONS
from convnn.train import TrainSettings
from convnn.train.loading import build_model
from convnn.train.recipes import ABOUT, list_recipes, list_studies, load_recipe, settings_of
from convnn.train.run import train

from ..command_line import run

RECIPES = [recipe.name for recipe in list_recipes()]
ATTENTIVE = ("cifar10_vit", "vit_tiny_cifar10", "vit_tiny_cifar100", "vit_base_imagenet", "imagenet_deit")
LARGE = ("imagenet_a2", "imagenet_deit", "resnet50_imagenet", "vgg11_cifar10", "vit_base_imagenet", "vit_tiny_cifar10")
CLASSES = {"vgg11_cifar10": 10, "vgg11_cifar100": 100, "vit_tiny_cifar10": 10, "vit_tiny_cifar100": 100}
PARAMETERS = {
    "vgg11_cifar10": 130_015_690,
    "vit_tiny_cifar10": 5_479_306,
    "resnet50_imagenet": 25_583_592,
    "vit_base_imagenet": 86_379_496,
    "imagenet_a2": 25_557_032,
}


def settings(name, *arguments):
    presets = ("recipe", settings_of)
    return parse(TrainSettings, [name, *arguments], command="train", text="", presets=presets)


def small(images, out, *more):
    given = {"--data": images, "--out": out, "--max-steps": 2, "--epochs": 1, "--batch-size": 8, "--workers": 0}
    precision = ("--precision", "32", "--accelerator", "cpu", "--progress", "false", "--pretrained", "false")
    return [*(str(part) for pair in given.items() for part in pair), *precision, *more]


def test_there_is_a_recipe_for_every_published_network_and_the_modern_ones():
    ours = {"cifar10_fast", "cifar10_vit"}
    expected = {"imagenet_a2", "imagenet_deit", "finetune", "resnet50_imagenet", "vit_base_imagenet"}
    assert ours | expected | set(CLASSES) == set(RECIPES)


@pytest.mark.parametrize("recipe", [*list_recipes(), *list_studies()], ids=lambda recipe: recipe.name)
def test_each_says_what_it_reproduces(recipe):
    assert set(recipe.about) == set(ABOUT)
    assert all(recipe.about.values())


@pytest.mark.parametrize("name", RECIPES)
def test_each_passes_its_checks_and_its_model_is_built(name, images):
    made = settings(name, "--data", str(images))
    made.check()
    with torch.device("meta"):
        model = build_model(dataclasses.replace(made, pretrained=False), classes=CLASSES.get(name, 1000))
    if name in PARAMETERS:
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", [name for name in RECIPES if "100" not in name])
def test_each_trains_a_small_network_for_two_steps(name, images, tmp_path):
    network = "small_transformer" if name in ATTENTIVE else "small_cnn"
    more = ["--model", network, "--image-size", "16", "--stem", "", "--drop-path", "0", "--model-options", "{}"]
    more += ["--init", "default", "--pad-crop", "0"]
    layer = {"hybrid": ["--layer", "hybrid"]}.get(settings(name).layer, [])
    result = train(settings(name, *small(images, tmp_path / "run", *more, *layer)))
    assert result["status"] == "finished"
    assert result["settings"]["optimizer"] == load_recipe(name).settings["optimizer"]
    assert result["settings"]["weight_decay"] == load_recipe(name).settings["weight_decay"]


@pytest.mark.parametrize("name", ["cifar10_fast", "cifar10_vit", "finetune"])
def test_small_ones_train_their_own_network(name, images, tmp_path):
    size = ["--image-size", "32"]
    assert train(settings(name, *small(images, tmp_path / "run", *size)))["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_ones_train_their_own_network(name, images, tmp_path):
    size = ["--image-size", "64"] if name in ("imagenet_a2", "resnet50_imagenet") else []
    result = train(settings(name, *small(images, tmp_path / "run", *size, "--batch-size", "2")))
    assert result["status"] == "finished"


def test_options_win_over_the_recipe_and_the_recipe_over_defaults():
    made = settings("vgg11_cifar10", "--lr", "0.5", "--decay-all", "false")
    assert (made.lr, made.decay_all, made.clip_grad, made.epochs) == (0.5, False, 1.0, 150)
    assert made.recipe == "vgg11_cifar10"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: fast\n", ": --lr: expected a number, got 'fast'; change it"),
        ("lrr: 1\n", ": lrr: expected an option of this command, got an unknown one; did you mean --lr?"),
        ("epochs: 1.5\n", ": --epochs: expected a whole number, got '1.5'; change it"),
        ("data: .\nepochs: 0\n", "--epochs: expected a whole number of at least 1, got 0; use 1 or more"),
        ("data: .\nmin_lr: 1\nlr: 0.1\n", "--min-lr: expected at most lr"),
        ("lr: [1\n", "recipe: expected a YAML file, got "),
        ("- 1\n", "recipe: expected a YAML file of keys and values, got "),
        ("lr: 1\nlr: 2\n", "lr stands twice"),
        ("recipe: {title: 3}\n", "recipe.title: expected text, got 3; write it in quotes"),
        ("recipe: {author: x}\n", "recipe.author: expected one of 'title', "),
    ],
)
def test_a_bad_recipe_is_one_line_that_names_the_key(text, message, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    status, out, err = run(capsys, "train", str(path))
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "hint"), [("vgg11_cifar", "did you mean 'vgg11_cifar10'"), ("a/b.yaml", "check the path")]
)
def test_unknown_recipes_are_named(name, hint, capsys):
    status, _, err = run(capsys, "train", name)
    assert status == 2
    assert err.startswith("convnn train: error: recipe: expected ")
    assert hint in err


def test_model_options_reach_the_model_and_none_is_given_twice(images):
    made = settings("vgg11_cifar10", "--data", str(images), "--model-options.kernel_size", "1")
    with torch.device("meta"):
        model = build_model(made, classes=10)
    assert {part.kernel_size for name, part in model.named_modules() if name.endswith(".conv")} == {(1, 1)}
    with pytest.raises(ConvNNError, match=r"^model_options: expected keywords .* got 'k'; give --k"):
        build_model(dataclasses.replace(made, model_options={"k": 3}), classes=10)


def test_recipes_are_listed_and_printed(capsys):
    status, out, _ = run(capsys, "recipes")
    assert status == 0
    assert all(recipe.name[:12] in out for recipe in (*list_recipes(), *list_studies()))
    status, out, _ = run(capsys, "recipes", "vgg11_cifar10")
    assert (status, out) == (0, load_recipe("vgg11_cifar10").path.read_text())
    status, _, err = run(capsys, "recipes", "vgg11")
    assert status == 2
    assert "name: expected one of 'cifar10_fast'" in err


def test_a_file_of_a_run_s_settings_is_a_recipe(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(cli, "_run", lambda _, given: seen.append(given))
    (tmp_path / "settings.yaml").write_text(f"recipe: vgg11_cifar10\ndata: {tmp_path}\nlr: 1e-4\n")
    assert run(capsys, "train", str(tmp_path / "settings.yaml"))[0] == 0
    assert seen[0].lr == 1e-4
    assert seen[0].model == "small_cnn"
    assert "published_vgg11" not in CONFIGURATIONS  # so that a study's branch_ratio = 0.5 is not taken for the default
