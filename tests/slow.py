"""Tests that ``make test`` leaves to ``make test-slow``: further members of families of which it runs the first ones.

A test with a mark of its own is slow by itself; these are cases of parametrized tests, or would leave a file without
its quick ones.
"""

from __future__ import annotations

import re

SLOW = {
    "a whole network through an exporter": (
        r"export/test_onnx\.py::test_(same|the_same_outputs|the_graph_has).*\[(resnet|vit, (ConvNN|hybrid))",
        r"export/test_onnx\.py::test_(random_candidates|sampled_layers)",
        r"export/test_onnx\.py::test_(other_precisions|the_model_stays|it_is_quiet|a_fixed_batch|a_wrong_export)",
        r"export/test_onnx\.py::test_(a_deterministic_process|the_neighbours|equal_keys|opsets\[18|an_opset)",
        r"export/test_torch_export\.py::.*(vit, k-NN|dtype1|float64|bfloat16)",
        r"export/test_command\.py::test_every_option_arrives",
        r"test_readme\.py::test_code_runs\[docs/export\.md",
    ),
    "a large backbone": (
        r"models/test_backbones\.py::.*\[(densenet121|resnet34|resnet50|vgg1[369]|vit_(small|base))",
        r"models/test_timm\.py::.*\[(densenet121|resnet50)",
    ),
    "derivatives of operators in every combination": (
        r"ops/test_operators\.py::test_torch_finds_nothing.*dtype[23]",
        r"ops/test_operators\.py::test_slot_mix.*(6-4-2|6-12-6)",
    ),
    "graphs of layers like those that are compiled": (
        r"test_compile\.py::test_compiles_into.*\[(patches|window|blend|grid|euclidean)",
        r"test_compile\.py::test_compiles_into.*\[(hybrid attention|k-NN attention)",
        r"test_compile\.py::test_exports_with_a_dynamic_batch\[(blend|grid|window|euclidean)",
    ),
    "several compilations, or what few changes touch": (
        r"native/test_build\.py::test_(changed_sources|the_sources_compile|a_level_defines)",
        r"native/test_off\.py::test_outputs_and_gradients.*-0\]",
        r"export/test_onnx\.py::test_the_file_says_what_it_is",
        r"export/test_torch_export\.py::test_it_has_plain_operators",
    ),
    "processes that each import torch": (
        r"train/study/test_sweep\.py::test_a_process_(trains|ends)",
        r"train/study/test_sweep\.py::test_a_process_(has_workers|that_is_wrong)",
        r"train/test_survival\.py::test_a_killed_run_on_images_of_files.*workers",
        r"export/test_command\.py::test_(it_says_what_it_does|its_options_need)",
        r"accounting/test_cli\.py::test_help_lists_every_option",
        r"test_extras\.py::test_the_extra_export_exports",
        r"export/test_torch_export\.py::test_it_runs_in_another_process",
        r"demo/test_demo\.py::test_the_whole_demo",
        r"demo/test_demo\.py::test_equal_seeds.*\[(hybrid|convnn_attention)",
    ),
}
"""Regular expressions of test names, by the reason."""

PATTERN = re.compile("|".join(pattern for patterns in SLOW.values() for pattern in patterns))
# Of the 214 published networks ``make test`` counts every sixth.
PUBLISHED, STEP = re.compile(r"accounting/test_published\.py::test_every_published_network"), 6


def slow_ones(names: list[str]) -> set[str]:
    """Return those of the names that are slow.

    >>> sorted(slow_ones(["tests/export/test_onnx.py::test_opsets[18]", "tests/export/test_onnx.py::test_opsets[25]"]))
    ['tests/export/test_onnx.py::test_opsets[18]']
    """
    published = [name for name in names if PUBLISHED.search(name)]
    few = len(published) <= STEP  # chosen by name
    left = set() if few else {name for position, name in enumerate(published) if position % STEP}
    return left | {name for name in names if PATTERN.search(name)}
