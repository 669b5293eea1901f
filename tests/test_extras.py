"""Each extra, installed alone, starts its commands: what no extra brings is hidden from a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from convnn.models import create_model, save_pretrained

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
IMPORTED_AS = {"scikit-learn": "sklearn", "pyyaml": "yaml", "faiss-cpu": "faiss", "torch-cluster": "torch_cluster"}

CALL = (
    "import sys\nsys.modules.update(dict.fromkeys(HIDDEN))\nfrom convnn.cli import main\nsys.exit(main(sys.argv[1:]))"
)


def packages(extra: str) -> set[str]:
    """Return the import names of what an extra asks for, and the extras that it names."""
    names: set[str] = set()
    for item in EXTRAS[extra]:
        inner = re.fullmatch(r"convnn\[(.*)\]", item)
        if inner:
            names |= set().union(*(packages(name) for name in inner[1].split(",")))
        else:
            name = re.match(r"[\w-]+", item)[0]
            names.add(IMPORTED_AS.get(name, name))
    return names


def run(extra: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    hidden = set().union(*map(packages, set(EXTRAS) - {"dev", "docs"})) - packages(extra)
    call = [sys.executable, "-c", f"HIDDEN = {hidden!r}\n{CALL}", *arguments]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("cli", ("profile", "small_cnn", "--no-time")),
        ("vision", ("table", "--help")),
        ("train", ("demo", "--help")),
        ("train", ("train", "--help")),
        ("bench", ("bench", "--help")),
    ],
)
def test_an_extra_starts_its_commands(extra, arguments):
    done = run(extra, *arguments)
    assert done.returncode == 0, done.stderr


def test_the_extra_export_exports(tmp_path):
    save_pretrained(create_model("small_cnn", num_classes=2, layer="hybrid", k=4), tmp_path / "model")
    done = run("export", "export", str(tmp_path / "model"), "--format", "torch-export", "--image-size", "8")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.pt2").is_file()


def test_what_an_extra_lacks_is_named():
    done = run("cli", "demo", "--quick")
    assert done.returncode == 1
    assert re.fullmatch(
        r"convnn demo: error: [\w.]+ is not installed, and this needs it; .* \"\.\[train\]\"\n", done.stderr
    )
