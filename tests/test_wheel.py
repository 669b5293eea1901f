"""What an installation has: the wheel holds every module, data file and command, and nothing else of the repository."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import convnn
from convnn.native import build

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INFO = f"convnn-{convnn.__version__}.dist-info"
BUILD = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"


NATIVE = (build.library_name(), build.RECORD)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build backend reads."""
    pytest.importorskip("hatchling", reason="the extra dev brings the build backend")
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("data"))  # the golden vectors
    return copy


def run_backend(project: Path, call: str, out: Path, **variables: str) -> str:
    """Call the build backend, without the network; return what it says."""
    command, environment = [sys.executable, "-c", call, str(out)], {**os.environ, **variables}
    options = {"capture_output": True, "text": True, "check": False, "timeout": 120}
    done = subprocess.run(command, cwd=project, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return str(done.stdout + done.stderr)


def load_hook(project: Path) -> ModuleType:
    """Import the build hook of a project."""
    spec = importlib.util.spec_from_file_location("hatch_build", project / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that the build backend makes."""
    out = tmp_path_factory.mktemp("wheel")
    run_backend(project, BUILD, out)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def record(wheel: zipfile.ZipFile) -> dict[str, object]:
    """What the wheel says of its native library."""
    found: dict[str, object] = json.loads(wheel.read(f"convnn/native/{build.RECORD}"))
    return found


def tags(wheel: zipfile.ZipFile) -> list[str]:
    """The lines on what the wheel is for."""
    return wheel.read(f"{INFO}/WHEEL").decode().split("\n")[2:4]


def test_it_has_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    files = (path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*") if path.is_file())
    expected = {name for name in files if "__pycache__" not in name and ".egg-info" not in name}
    expected -= {f"convnn/native/{name}" for name in NATIVE}  # of the source tree; the wheel has its own
    expected |= {f"convnn/native/{name}" for name in (build.RECORD, record(wheel)["library"]) if name}
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


def test_a_wheel_with_a_library_is_for_its_platform(wheel: zipfile.ZipFile) -> None:
    if record(wheel)["library"] is None:
        pytest.skip(f"needs a C compiler: {record(wheel)['reason']}")
    assert record(wheel)["sources"] == build.sources_digest()
    platform = Path(str(wheel.filename)).stem.split("-py3-none-")[1]
    assert platform != "any"
    assert tags(wheel) == ["Root-Is-Purelib: false", f"Tag: py3-none-{platform}"]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [({"CONVNN_BUILD_NATIVE": "0"}, "CONVNN_BUILD_NATIVE is 0"), ({"PATH": ""}, "no C compiler (cc, gcc, clang) was")],
)
def test_without_a_library_it_is_for_every_platform(
    project: Path, tmp_path: Path, variables: dict[str, str], reason: str
) -> None:
    said = run_backend(project, BUILD, tmp_path, CC="", **variables)
    assert f"The native library was not compiled ({reason}" in said
    made = zipfile.ZipFile(tmp_path / f"convnn-{convnn.__version__}-py3-none-any.whl")
    assert str(record(made)["reason"]).startswith(reason)
    assert tags(made) == ["Root-Is-Purelib: true", "Tag: py3-none-any"]
    assert not [name for name in made.namelist() if "/_convnn." in name]


def test_an_editable_installation_compiles_into_the_source_tree(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the hook alone: the rest of an editable build needs a package that pip brings at that moment."""
    native = project / "src" / "convnn" / "native"
    for name in NATIVE:
        (native / name).unlink(missing_ok=True)
    hook, added = (
        load_hook(project).NativeLibraryHook(str(project), {}, None, None, str(tmp_path), "wheel"),
        {"force_include": {}},
    )
    hook.initialize("editable", added)
    found = build.read_record(native)
    assert found is not None
    assert str(found) in "".join(capfd.readouterr())
    assert found.library is None or (native / found.library).is_file()
    assert added == {"force_include": {}}  # the source tree is what is installed
    monkeypatch.setenv("CONVNN_BUILD_PLATFORM", "win_amd64")
    with pytest.raises(ValueError, match=r"CONVNN_BUILD_PLATFORM: expected one of manylinux_2_17_x86_64, .* got 'win_"):
        hook.initialize("standard", added)


def test_what_the_system_refuses_fails_no_installation(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    hook_file, added = load_hook(project), {"force_include": {}}
    monkeypatch.setattr(hook_file, "load", lambda _: SimpleNamespace(PLATFORMS={}, build=full))
    hook = hook_file.NativeLibraryHook(str(project), {}, None, None, str(tmp_path), "wheel")
    hook.initialize("standard", added)
    hook.finalize("standard", added, "")
    assert added == {"force_include": {}}
    assert "not compiled (no space left on device): convnn runs in plain PyTorch" in "".join(capfd.readouterr())
    assert not Path(hook.scratch).exists()


def test_the_source_distribution_has_what_a_build_needs(project: Path, tmp_path: Path) -> None:
    (project / "src" / "convnn" / "native" / build.RECORD).touch()
    run_backend(project, BUILD.replace("build_wheel", "build_sdist"), tmp_path)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"hatch_build.py", "src/convnn/native/build.py", "src/convnn/native/csrc/dispatch.c"} <= names
    assert not {f"src/convnn/native/{name}" for name in NATIVE} & names
