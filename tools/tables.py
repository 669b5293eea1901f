"""Write the measured numbers into the pages: `.venv/bin/python tools/tables.py`.

A page holds `<!-- table NAME -->`, a table and `<!-- end of table -->`; this script writes the table from the records
in results/. `tests/test_tables.py` fails where a page and the records differ.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/benchmarks.md", "docs/studies.md", "results/README.md")
MARKED = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

SHAPES = ("16x64x32", "16x128x16", "8x64x56", "8x128x28", "8x256x14", "8x512x7", "1x64x256")
LAYERS = {"`Random(32)`": "random 32", "`Grid(5)`": "grid 5", "all candidates": "all"}
RECOVERED = "recovered convolution"
PASSES = {"forward": "forward", "training": "forward+backward"}
OPERATOR = "operator-cpu-avx2"
FAISS = "search-faiss-avx2"
OPERATOR_AVX512 = "operator-cpu"


def record(name: str) -> dict[str, Any]:
    """Read a record of results/."""
    found: dict[str, Any] = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def number(value: float) -> str:
    """Return a ratio with two decimals below 2, and with fewer above.

    >>> number(0.4567), number(3.888), number(97.93)
    ('0.46', '3.9', '98')
    """
    return f"{value:.2f}" if value < 1.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def cell(case: dict[str, Any] | None, passed: str) -> str:
    """Return the ratio of a case and its range over the processes, or nothing where it was not measured."""
    if case is None or passed not in case:
        return ""
    low, high = case[passed]["ratio_range"]
    return f"{number(case[passed]['ratio'])} ({number(low)} to {number(high)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def shape_of(name: str) -> str:
    """Return a shape in words: ``16x64x32`` is 16 samples of 64 channels on maps of 32 x 32."""
    batch, channels, side = name.split("x")
    return f"{batch} x {channels} x {side}²"


def summary() -> str:
    """Return README's table: per layer the smallest and the largest ratio over all shapes."""
    cases, rows = record(OPERATOR)["cases"], []
    names = {label: f"{name} vs conv" for label, name in LAYERS.items()} | {RECOVERED: "recovered conv"}
    for label, name in names.items():
        found = [cases[f"{name}/{shape}"] for shape in SHAPES if f"{name}/{shape}" in cases]
        spans = []
        for passed in PASSES.values():
            ratios = [case[passed]["ratio"] for case in found]
            spans.append(f"{number(min(ratios))} to {number(max(ratios))}")
        rows.append([label, *spans])
    return table(["time, ConvNN2d / `nn.Conv2d`", *PASSES], rows)


def by_shape(columns: dict[str, str], name: str = OPERATOR) -> str:
    """Return a table of shapes: forward and training of every column's case."""
    cases = record(name)["cases"]
    head = ["shape"] + [f"{label}, {passed}" for label in columns for passed in PASSES]
    rows = []
    for shape in SHAPES:
        found = [cases.get(f"{case}/{shape}") for case in columns.values()]
        if any(found):
            cells = [cell(case, passed) for case in found for passed in PASSES.values()]
            rows.append([shape_of(shape), *cells])
    return table(head, rows)


def against_convolution(name: str = OPERATOR) -> str:
    """Return the table of layers beside nn.Conv2d."""
    columns = {label: f"{case} vs conv" for label, case in LAYERS.items()} | {RECOVERED: "recovered conv"}
    return by_shape(columns, name)


def against_plain() -> str:
    """Return the table of layers beside the plain algorithm."""
    return by_shape({label: f"{case} vs plain" for label, case in LAYERS.items()})


def in_process() -> str:
    """Return the table of the recovered convolution beside the one of the same process."""
    cases, rows = record(OPERATOR)["cases"], []
    for shape in SHAPES[:-1]:
        case = cases[f"recovered conv/{shape}"]
        rows.append([shape_of(shape), *(f"{case[passed]['ratio_in_process']:.2f}" for passed in PASSES.values())])
    return table(["shape", *PASSES], rows)


def by_case(*prefixes: str, passes: Sequence[str] = tuple(PASSES), names: Sequence[str] = (OPERATOR,)) -> str:
    """Return a table of the records' cases, in every pass named: milliseconds of both sides, and the ratio."""
    cases = {case: times for name in names for case, times in record(name)["cases"].items()}
    head = ["case", "compared with", *(f"{passed}{unit}" for passed in passes for unit in (", ms", ", ratio"))]
    rows = []
    for name, case in cases.items():
        if not name.startswith(prefixes):
            continue
        row = [name, case["against"]]
        for passed in passes:
            timed = case.get(PASSES[passed])
            row.append(f"{timed['ours_ms']:,.1f} / {timed['theirs_ms']:,.1f}" if timed else "")
            row.append(cell(case, PASSES[passed]))
        rows.append(row)
    return table(head, rows)


def memory() -> str:
    """Return the table of the memory that one step needs."""
    sides = {"native": "ours", "plain PyTorch": "tiled", "the plain algorithm": "plain", "`nn.Conv2d`": "conv"}
    rows = [
        [str(row["samples"]), f"{row['tokens']:,}"]
        + [f"{row[side]['extra_mib']:,.0f}" if side in row else "" for side in sides.values()]
        for row in record("memory-cpu")["rows"]
    ]
    return table(["samples", "tokens", *(f"{side}, MiB" for side in sides)], rows)


def recall() -> str:
    """Return the table of associative recall: what each attention reached in each way of training."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in record("recall-cpu")["runs"]:
        groups.setdefault((run["tokens"], run["grow"], run["lr"], run["k"]), []).append(run)
    rows = []
    for (tokens, grow, rate, k), runs in groups.items():
        reached = [str(run["steps_to_99"] or f"not in {run['steps']:,}") for run in runs]
        accuracies = ", ".join(f"{100 * run['accuracy']:.1f}" for run in runs)
        way = "growing" if grow else "full length"
        rows.append([f"{tokens:,}", way, f"{rate:g}", neighbours(k), accuracies, ", ".join(reached)])
    return table(["tokens", "training", "learning rate", "attention", "accuracy, %", "steps to 99 %"], rows)


def recall_costs() -> str:
    """Return the table of what a training step of associative recall costs with each attention."""
    rows = []
    for cost in record("recall-cpu")["costs"]:
        low, high = cost["ratio_range"]
        ratio = "1" if cost["k"] is None else f"{number(cost['ratio'])} ({number(low)} to {number(high)})"
        shown = [f"{cost['tokens']:,}", neighbours(cost["k"]), cost["impl"], f"{cost['seconds']:.2f}", ratio]
        rows.append([*shown, f"{cost['extra_mib']:,.0f}"])
    return table(["tokens", "attention", "`impl`", "seconds", "seconds / full", "MiB"], rows)


def reading() -> str:
    """Return the table of reading images of shards: images a second and memory over the tenths of each epoch."""
    rows = []
    tenths = record("data-shards")["rows"]
    for epoch in sorted({row["epoch"] for row in tenths}):
        found = [row for row in tenths if row["epoch"] == epoch]
        rates, held = ([row[name] for row in found] for name in ("images_s", "mib"))
        cells = [f"{min(values):,.0f} to {max(values):,.0f}" for values in (rates, held)]
        rows.append([str(epoch + 1), f"{sum(row['images'] for row in found):,}", *cells])
    return table(["epoch", "images", "images a second", "MiB of all processes"], rows)


def in_memory() -> str:
    """Return the table of reading a batch of images that are in memory, beside a training step."""
    found = record("data-resident")
    row = [f"{1e3 * found['read_s']:.1f}", f"{1e3 * found['step_s']:,.0f}", f"{100 * found['ratio']:.1f}"]
    return table(["reading, ms", "training step, ms", "reading / step, %"], [row])


def neighbours(k: int | None) -> str:
    """Return a number of neighbours in words."""
    return "full" if k is None else f"k = {k}"


def study(name: str) -> str:
    """Return the table of a study: accuracy, its difference to the baseline, and what a variant costs."""
    found = record(name)
    rows = []
    for variant in found["variants"]:
        spread = "" if variant["std"] is None else f" ± {100 * variant['std']:.2f}"
        apart = variant["difference"]
        between = "" if apart is None else f"{100 * apart['mean']:+.2f}"
        if apart is not None and apart["low"] is not None:
            between += f" ({100 * apart['low']:+.2f} to {100 * apart['high']:+.2f})"
        sizes = (f"{variant['parameters'] / 1e6:.2f} M", f"{variant['flops'] / 1e6:,.0f} M")
        accuracy = f"{100 * variant['mean']:.2f}{spread}"
        minutes = f"{variant['training_seconds'] / 60:.0f}"
        rows.append([f"`{variant['name']}`", str(variant["n"]), accuracy, between, *sizes, minutes])
    head = ["layers", "runs", "test accuracy, %", f"difference to `{found['baseline']}` (95 %)", "parameters", "FLOPs"]
    return table([*head, "minutes"], rows)


def records() -> str:
    """Return the list of all records: when, where and by which command each was made."""
    rows = []
    for path in sorted((ROOT / "results").glob("*.json")):
        made = record(path.stem)
        if "variants" in made:  # a comparison of runs
            threads = sorted({each for variant in made["variants"] for each in variant["threads"]})
            made = {**made["provenance"], "threads": int(threads[-1]), "instructions": made["provenance"]["system"]}
            made |= {"processor": made["machine"], "date": made["date"][:10]}
        where = f"{made['processor']}, {made['instructions']}, {made['threads']} thread{'s' * (made['threads'] > 1)}"
        rows.append([f"`{path.name}`", made["date"], where, f"torch {made['torch']}", f"`{made['command']}`"])
    return table(["record", "date", "machine", "version", "command"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "convolution": against_convolution,
    "convolution-avx512": lambda: against_convolution(OPERATOR_AVX512),
    "in-process": in_process,
    "floor": lambda: by_shape({"all candidates": "all vs floor"}),
    "plain": against_plain,
    "plain-tuned": lambda: by_shape({"all candidates": "all vs plain"}, "operator-cpu-tuned"),
    "pytorch": lambda: by_shape({"all candidates": "all vs PyTorch"}),
    "attention": lambda: by_case("attention", "recovered attention"),
    "attention-avx512": lambda: by_case("attention", "recovered attention", names=[OPERATOR_AVX512]),
    "search": lambda: by_case("search vs", "exact search", passes=["forward"], names=[OPERATOR, FAISS]),
    "sharing": lambda: by_case("shared search", "depthwise", "sum"),
    "resnet50": lambda: by_case("ResNet-50"),
    "resnet50-avx512": lambda: by_case("ResNet-50", names=[OPERATOR_AVX512]),
    "memory": memory,
    "recall": recall,
    "recall-costs": recall_costs,
    "data-resident": in_memory,
    "data-shards": reading,
    "cifar10-fast": lambda: study("cifar10_fast"),
    "cifar10-vit-layers": lambda: study("cifar10_vit_layers"),
    "records": records,
}


def render(text: str) -> str:
    """Return a page with every marked table written from the records."""
    return MARKED.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}", text)


def main() -> None:
    """Write the tables of all pages."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
