"""What an installation has: the wheel holds every module, data file and command, and nothing else of the repository."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import convnn

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INFO = f"convnn-{convnn.__version__}.dist-info"
BUILD = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that the build backend makes, without the network, of a copy of what it reads."""
    pytest.importorskip("hatchling", reason="the extra dev brings the build backend")
    copy, out = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src")
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("data"))  # the golden vectors
    call = [sys.executable, "-c", BUILD, str(out)]
    done = subprocess.run(call, cwd=copy, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_it_has_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    files = (path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*") if path.is_file())
    expected = {name for name in files if "__pycache__" not in name and ".egg-info" not in name}
    found = {name for name in wheel.namelist() if not name.startswith(INFO)}
    assert found == expected
    # Of the copy above nothing is missing that is there: modules, pages, their style, and the mark of the types.
    assert {"convnn/__init__.py", "convnn/py.typed", "convnn/demo/report.html", "convnn/_utils/page.css"} <= found


def test_it_has_the_command_the_licence_and_the_requirements(wheel: zipfile.ZipFile) -> None:
    commands = configparser.ConfigParser()
    commands.read_string(wheel.read(f"{INFO}/entry_points.txt").decode())
    assert dict(commands["console_scripts"]) == PROJECT["scripts"]
    assert any(name.startswith(INFO) and name.endswith("/LICENSE") for name in wheel.namelist())
    metadata = wheel.read(f"{INFO}/METADATA").decode().splitlines()
    assert f"Version: {convnn.__version__}" in metadata
    assert {line.partition(": ")[2] for line in metadata if line.startswith("Provides-Extra: ")} == set(
        PROJECT["optional-dependencies"]
    )
    assert [line for line in metadata if line.startswith("Requires-Dist: ") and "extra ==" not in line] == [
        f"Requires-Dist: {requirement}" for requirement in PROJECT["dependencies"]
    ]
