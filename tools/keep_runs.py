"""Keep the finished runs of a study among the records: `.venv/bin/python tools/keep_runs.py studies/NAME`.

Copies the settings and the result of every finished run to results/runs/NAME, and `comparison.json` to
results/NAME.json. `cp -r results/runs/NAME studies/` puts the runs back: the study goes on with those that are left.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = ("settings.yaml", "result.json")


def keep(study: Path, results: Path) -> list[Path]:
    """Copy what is finished of a study; return the folders of the copies. Paths become relative to the repository."""
    kept: list[Path] = []
    for result in sorted(study.glob("*/seed-*/result.json")):
        if json.loads(result.read_text(encoding="utf-8"))["status"] != "finished":
            continue
        folder = results / "runs" / study.name / result.parent.relative_to(study)
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            _copy(result.with_name(name), folder / name, study)
        kept.append(folder)
    comparison = study / "comparison.json"
    if comparison.is_file():
        _copy(comparison, results / f"{study.name}.json", study)
    return kept


def _copy(source: Path, target: Path, study: Path) -> None:
    text = source.read_text(encoding="utf-8")
    target.write_text(text.replace(f"{study.parent.parent.absolute()}/", ""), encoding="utf-8")


def main() -> None:
    """Keep the runs of the studies that are named."""
    if len(sys.argv) == 1:
        sys.exit(f"Name the folder of a study. {__doc__}")
    for name in sys.argv[1:]:
        kept = keep(Path(name).absolute(), ROOT / "results")
        print(f"{name}: {len(kept)} runs kept in results/runs")


if __name__ == "__main__":
    main()
