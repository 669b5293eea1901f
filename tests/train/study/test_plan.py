"""Studies expand to the runs that they name, and the package's ones hold every published configuration."""

import dataclasses

import pytest

from convnn import ConvNNError
from convnn.models import format_candidates
from convnn.train.recipes import list_studies
from convnn.train.study.plan import check_plan, merged, read_plan, select

from ...published_rows import rows, vgg11, vit_tiny

BASE = "settings: {data: ., epochs: 1}\n"


def study(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return str(path)


def test_grids_variants_and_seeds_are_combined(tmp_path):
    plan = read_plan(
        study(
            tmp_path,
            "settings: {data: ., lr: 0.5}\nbaseline: conv\nseeds: [0, 1]\ngrid: {epochs: [3]}\n"
            "variants:\n  conv: {layer: conv, grid: {}}\n  hybrid: {layer: hybrid, lr: 1e-1, seeds: [7],"
            " grid: {k: [4, 9], model_options.kernel_size: [1]}}\n  convnn: {layer: convnn}\n",
        )
    )
    assert [run.folder for run in plan.runs] == [
        "conv/seed-0", "conv/seed-1", "hybrid,k=4,kernel_size=1/seed-7", "hybrid,k=9,kernel_size=1/seed-7",
        "convnn,epochs=3/seed-0", "convnn,epochs=3/seed-1",
    ]  # fmt: skip
    expected = {"data": ".", "lr": 0.1, "layer": "hybrid", "k": 9, "model_options": {"kernel_size": 1}}
    assert plan.runs[3].settings == expected
    assert plan.runs[0].settings == {"data": ".", "lr": 0.5, "layer": "conv"}


def test_a_recipe_beside_the_study_is_its_base(tmp_path):
    (tmp_path / "own.yaml").write_text("recipe: {title: Own}\nlr: 0.25\nlayer: hybrid\n")
    plan = read_plan(study(tmp_path, "recipe: [own.yaml, vgg11_cifar10]\ngrid: {k: [3]}\n"))
    assert [(run.variant, run.settings["lr"]) for run in plan.runs] == [("own,k=3", 0.25), ("vgg11_cifar10,k=3", 1e-4)]


def test_merging_copies():
    base = {"model_options": {"a": 1}}
    assert merged(base, {"model_options": {"b": 2}}) == {"model_options": {"a": 1, "b": 2}}
    assert base == {"model_options": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grids: {}\n", "^grids: expected one of 'recipe', .*did you mean 'grid'"),
        (BASE + "grid: {k: 3}\n", r"^grid.k: expected a list of values, got 3; write \[one, two\]"),
        (BASE + "seeds: [0, 0]\n", "^seeds: expected different whole numbers"),
        (BASE + "seeds: [x]\n", "^seeds: expected different whole numbers"),
        (BASE + "variants: [conv]\n", "^variants: expected keys and values"),
        (BASE + "variants: {a: {k: 1}}\nbaseline: b\n", "^baseline: expected one of 'a', got 'b'"),
        (BASE + "variants: {a b: {k: 1}, a;b: {k: 2}}\n", "^variants: expected names that differ"),
        ("recipe: nowhere\n", "^recipe: expected one of 'cifar10_fast'"),
        ("recipe: 3\n", "^recipe: expected a name, a path or a list"),
        (
            BASE + "grid: {kk: [3]}\n",
            "^kk=3: kk: expected an option of convnn train, got an unknown one; did you mean k?",
        ),
        (BASE + "grid: {k: [x]}\n", "^k=x: k: expected a whole number, got 'x'; change it"),
        (BASE + "grid: {lr: [true]}\n", "^lr=True: lr: expected a number, got True"),
        (BASE + "grid: {seed: [3]}\n", r"^seed=3: seed: expected none \(the study sets it\)"),
        (BASE + "variants: {a: {layer: hybird}}\n", "^a: layer: expected one of .* did you mean 'hybrid'"),
        (BASE + "variants: {a: {ema_warmup: true}}\n", "^a: ema_warmup: expected False without ema"),
        ("variants: {a: {k: 1}}\n", "^a: data: expected a folder of images"),
    ],
)
def test_wrong_studies_are_named_before_anything_runs(text, message, tmp_path):
    with pytest.raises(ConvNNError, match=message):
        check_plan(read_plan(study(tmp_path, text)), out=tmp_path / "out")


def test_a_choice_of_variants_and_other_seeds():
    plan = read_plan("vgg11_learning_rate")
    chosen = select(plan, only="conv,*", seeds="5,6")
    assert len(plan.runs) == 45
    assert [(run.variant, run.seed) for run in chosen.runs][:3] == [
        ("conv,lr=1e-05", 5), ("conv,lr=1e-05", 6), ("conv,lr=5e-05", 5),
    ]  # fmt: skip
    with pytest.raises(ConvNNError, match=r"^only: expected a pattern that matches a variant"):
        select(plan, only="nothing")
    with pytest.raises(ConvNNError, match=r"^seeds: expected whole numbers such as 0,1,2, got '1,x'"):
        select(plan, seeds="1,x")


@pytest.mark.parametrize("recipe", list_studies(), ids=lambda recipe: recipe.name)
def test_the_studies_of_the_package_pass_their_checks(recipe, tmp_path):
    plan = read_plan(recipe.name)
    settings = check_plan(plan, out=tmp_path, data=str(tmp_path))
    assert len(settings) == len(plan.runs)
    assert {one.data for one in settings} == {str(tmp_path)}
    assert len({dataclasses.replace(one, model_options=None).out for one in settings}) == len(settings)


def network(row):
    """Return what a published row sets, as a study's settings would say it."""
    options = vgg11(row) if row["model"] == "vgg11" else vit_tiny(row)
    model = "published_vgg11" if row["model"] == "vgg11" else "published_vit_tiny"
    more = {}
    if options.get("kernel_size", 3) != 3:
        more["kernel_size"] = options["kernel_size"]
    if options.get("value_coordinates"):
        more["value_coordinates"] = True
    if options.get("aggregation", "depthwise") != "depthwise":
        more["aggregation"] = options["aggregation"]
    blend = row.get("similarity_type") == "Loc_Col"
    return (
        model, options["num_classes"], options.get("attention", "hybrid"), options.get("branch_ratio", 0.5),
        9 if options.get("attention") == "attention" or options.get("branch_ratio") == 0 else options["k"],
        format_candidates(options.get("candidates", "all")), "blend:0.5" if blend else "cosine",
        tuple(sorted(more.items())),
    )  # fmt: skip


def planned(run):
    """Return the same of a run of a study."""
    given = run.settings
    more = {
        key: value for key, value in (given.get("model_options") or {}).items() if (key, value) != ("kernel_size", 3)
    }
    classes = 100 if given["data"] == "torch/cifar100" else 10
    return (
        given["model"], classes, given["layer"], given.get("branch_ratio", 0.5), given.get("k", 9),
        given.get("candidates", "all"), given.get("similarity") or "cosine", tuple(sorted(more.items())),
    )  # fmt: skip


def test_every_published_configuration_is_a_run_of_a_study():
    runs = {planned(run) for one in list_studies() if "imagenet" not in one.name for run in read_plan(one.name).runs}
    missing = [row for row in map(network, rows()) if row not in runs]
    assert missing == []
