"""The tables of measured numbers in the pages are those of the records in results/."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_tables():
    spec = importlib.util.spec_from_file_location("tools_tables", ROOT / "tools" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tables = load_tables()


@pytest.mark.parametrize("name", tables.PAGES)
def test_the_tables_of_a_page_are_those_of_the_records(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert tables.render(text) == text, "run: python tools/tables.py"


def test_every_table_is_on_a_page():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in tables.PAGES]
    named = [match[2] for text in texts for match in tables.MARKED.finditer(text)]
    assert sorted(named) == sorted(tables.TABLES)


def test_a_changed_number_is_found():
    """Of every number of a table: each is written again from the records."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    marked = tables.MARKED.search(text)
    numbers = list(re.finditer(r"\d+\.\d+", marked[0]))
    assert len(numbers) > 8
    for found in numbers:
        at = marked.start() + found.start()
        assert tables.render(text[:at] + "9" + text[at:]) == text


def test_numbers_against_a_record_read_by_hand():
    """README's ratios of training with Random(32), from the times of the record."""
    cases = tables.record("operator-cpu-avx2")["cases"]
    ratios = [
        case["forward+backward"]["ratio"] for name, case in cases.items() if name.startswith("random 32 vs conv/")
    ]
    row = next(line for line in tables.summary().splitlines() if "Random(32)" in line)
    assert row.split(" | ")[2].rstrip(" |") == f"{min(ratios):.2f} to {max(ratios):.2f}"
