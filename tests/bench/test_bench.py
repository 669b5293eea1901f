"""`convnn bench`: both sides of a case do the same job, the figures are what the clock gave, the record is complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from convnn import ConvNNError, cli
from convnn.bench import cases, comparators, measure, run
from convnn.bench.cases import Case
from convnn.bench.settings import BenchSettings
from convnn.bench.steps import Function, step_of, training_step


def test_the_small_set_has_one_case_of_every_question_that_is_quick() -> None:
    names = list(cases.cases())
    assert len(names) == len(set(names))
    small = run.selected(BenchSettings())
    slow = {"ResNet-50 hybrid random 32", "ResNet-50 hybrid all"}
    questions = {name.split("/")[0] for name in names} - slow
    assert {name.split("/")[0] for name in small} == questions
    assert set(run.selected(BenchSettings(full=True))) == set(names)
    assert run.selected(BenchSettings(only="dense/24x1024")) == ["attention vs masked dense/24x1024x64"]


def test_every_shape_that_the_issue_of_speed_is_about_has_its_cases() -> None:
    names = set(cases.cases())
    for shape in ("16x64x32", "16x128x16", "8x64x56", "8x128x28", "8x256x14", "8x512x7"):
        for question in ("all vs plain", "all vs floor", "random 32 vs conv", "grid 5 vs plain", "recovered conv"):
            assert f"{question}/{shape}" in names
    assert "random 32 vs conv/1x64x256" in names


def test_no_process_waits_for_what_its_case_does_not_need() -> None:
    """Every measurement is a process of its own, which lists the cases first."""
    code = "import sys; from convnn.bench.cases import cases; cases(); print('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("depthwise", [True, False])
def test_gather_and_einsum_is_what_knn_gather_computes(depthwise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both makers build their functions around the same inputs, so their outputs can be compared."""
    outputs: list[torch.Tensor] = []

    def keep(layer: Function, x: torch.Tensor, grad: bool) -> Any:
        outputs.append(layer(x))
        return lambda: None

    for module, make in ((cases, cases.given_neighbors), (comparators, comparators.gather_and_einsum)):
        monkeypatch.setattr(module, "step_of", keep)
        torch.manual_seed(0)
        make((2, 4, 5), depthwise=depthwise)(False)  # type: ignore[operator]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_masked_dense_attention_is_knn_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[torch.Tensor] = []

    def keep(layer: Function, x: torch.Tensor, grad: bool) -> Any:
        outputs.append(layer(x))
        return lambda: None

    monkeypatch.setattr(comparators, "step_of", keep)
    knn = cases._attentions()["attention vs masked dense/24x197x64"]
    for make in (knn.ours, knn.theirs):
        torch.manual_seed(0)
        make(False)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_other_searches_find_the_same_neighbours() -> None:
    tokens = torch.randn(2, 30, 4)
    nearest = (tokens.unsqueeze(2) - tokens.unsqueeze(1)).square().sum(-1).topk(comparators.K, largest=False).indices
    known = comparators.other_searches()
    found: Any = known["torch.cdist + topk"](tokens)
    assert found.indices.sort(2).values.tolist() == nearest.sort(2).values.tolist()
    if "scikit-learn brute force" in known:
        results: Any = known["scikit-learn brute force"](tokens)
        assert [sorted(row) for row in results[1][1]] == nearest[1].sort(1).values.tolist()


def test_a_step_runs_forward_alone_or_reaches_every_parameter() -> None:
    layer = torch.nn.Linear(3, 2)
    calls: list[bool] = []
    layer.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    step_of(layer, torch.randn(4, 3), False)()
    assert calls == [False]
    step_of(layer, torch.randn(4, 3), True)()
    assert calls[-1] is True
    before = layer.weight.detach().clone()
    training_step(layer, torch.randn(4, 3), 2)()
    assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(("turn", "order"), [(0.0, "abababab"), (5.0, "abaaabbaaabb")])
def test_whose_turn_it_is(turn: float, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 2 and 3 seconds by a clock that only they move, timed for 13 seconds: turn by turn, 3 times at least."""
    now, ran = [0.0], []

    def step(name: str, seconds: float) -> Any:
        def run_step() -> None:
            ran.append(name)
            now[0] += seconds

        return run_step

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    assert measure.in_turn(step("a", 2.0), step("b", 3.0), seconds=13.0, turn=turn) == (2000.0, 3000.0)
    assert "".join(ran) == order


def test_a_record_has_medians_ratios_and_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any) -> None:
    """Processes that measured 1, 2 and 6 ms for ours and 4, 8 and 6 for a convolution, whose fastest counts."""
    steps: Any = lambda grad: lambda: None  # noqa: E731  # never run here
    times = iter([(1.0, 4.0), (2.0, 8.0), (6.0, 6.0)] * 2)
    monkeypatch.setattr(run, "cases", lambda: {"q/16x128x16": None})
    monkeypatch.setattr(measure, "cases", lambda: {"q/16x128x16": Case(steps, steps, "nn.Conv2d", both=False)})

    def in_process(function: Any, *arguments: Any) -> Any:
        return {"forward": next(times)} if function is measure._time else 7.5

    monkeypatch.setattr(measure, "_in_fresh_process", in_process)
    record = tmp_path / "record.json"
    run.run_bench(BenchSettings(json=str(record)))
    written = json.loads(record.read_text())
    assert {"command", "date", "processor", "threads", "torch", "processes"} <= written.keys()
    found = written["cases"]["q/16x128x16"]
    assert found["forward"] == {
        "ours_ms": 2.0, "theirs_ms": 4.0, "ratio": 0.5, "ratio_range": [0.25, 1.5], "ratio_in_process": 0.25,
    }  # fmt: skip
    assert found["extra_mib"] == {"ours": 7.5, "theirs": 7.5}
    shown = capsys.readouterr().out
    assert re.search(r"q/16x128x16 +forward +2\.00 +4\.00 +0\.50 \(0\.25 to 1\.50\)", shown)


def test_one_case_for_real(tmp_path: Any, capsys: Any) -> None:
    record = tmp_path / "record.json"
    options = ["--only", "search vs torch.cdist + topk/16x128x16", "--processes", "1", "--seconds", "0.01"]
    assert cli.main(["bench", *options, "--json", str(record)]) == 0
    found = json.loads(record.read_text())["cases"]["search vs torch.cdist + topk/16x128x16"]
    assert found["forward"]["ours_ms"] > 0
    assert found["extra_mib"]["theirs"] > 4  # 16 matrices of 256 x 256 float32
    assert "extra MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"only": "al vs plian"},
            "only: expected a part of a case's name, got 'al vs plian'; the questions",
        ),
        ({"processes": 0}, "processes: expected a whole number of at least 1, got 0"),
        ({"seconds": -1.0}, "seconds: expected a number above 0, got -1.0"),
        ({"turn": -0.1}, "turn: expected a number of at least 0, got -0.1"),
        ({"json": "nowhere/x.json"}, "json: expected a file in a folder that exists"),
    ],
)
def test_wrong_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvNNError, match=re.escape(message)):
        BenchSettings(**options).check()
