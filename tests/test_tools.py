"""Scripts of tools/: when .venv is ready, what a user is told, which versions are installed, what runs are kept."""

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


venv = load("venv")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder in which creating .venv and pip are quick pretences; `calls` lists what was asked of them."""
    (tmp_path / "requirements.lock").write_text("a==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    calls = []

    def create(root, python):
        calls.append("create")
        (root / ".venv/bin").mkdir(parents=True, exist_ok=True)
        (root / ".venv/bin/python").symlink_to(sys.executable)

    def pip(command, root, log):
        calls.append("pip")
        log.write_text("no network\n")
        return tmp_path.joinpath("offline").exists()

    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(venv, "pip_command", lambda root, python: ["pip"])
    monkeypatch.setattr(venv, "run_with_heartbeat", pip)
    monkeypatch.setattr(venv, "SMOKE", "pass")
    native = tmp_path / "src/convnn/native/build.py"
    native.parent.mkdir(parents=True)
    native.write_text("import sys, pathlib\npathlib.Path('compiled').write_text(' '.join(sys.argv[1:]))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(venv, "ROOT", tmp_path)
    return tmp_path, calls


def test_a_ready_venv_is_reused(project, capsys):
    root, calls = project
    assert not venv.is_ready(root)
    venv.main()
    assert venv.is_ready(root)
    venv.main()
    assert calls == ["create", "pip"]
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["requirements.lock", "pyproject.toml"])
def test_a_change_updates_it(project, name):
    root, calls = project
    venv.main()
    (root / name).write_text("changed\n")
    assert not venv.is_ready(root)
    venv.main()
    assert venv.is_ready(root)
    assert calls == ["create", "pip", "pip"]


def test_every_run_compiles_what_has_changed(project, capfd):
    root, _ = project
    for _ in range(2):  # with the installation, and without
        venv.main()
        assert (root / "compiled").read_text() == "--if-changed"
        (root / "compiled").unlink()
    assert "Careful" not in capfd.readouterr().out
    (root / "src/convnn/native/build.py").write_text("raise SystemExit(1)")
    venv.main()
    assert "The native library could not be compiled" in capfd.readouterr().out


def test_a_moved_folder_is_not_ready(project):
    root, _ = project
    venv.main()
    moved = root.with_name("moved")
    root.rename(moved)
    assert not venv.is_ready(moved)


def test_a_venv_whose_python_is_gone_is_not_ready(project):
    root, _ = project
    venv.main()
    (root / ".venv/bin/python").unlink()
    assert not venv.is_ready(root)


def test_half_an_install_starts_over(project, capsys):
    root, calls = project
    (root / "offline").touch()
    with pytest.raises(SystemExit, match=r"install\.log"):
        venv.main()
    assert "no network" in capsys.readouterr().out
    assert not venv.is_ready(root)
    (root / "offline").unlink()
    (root / ".venv/bin/python").unlink()
    venv.main()
    assert venv.is_ready(root)
    assert calls == ["create", "pip", "create", "pip"]


def test_an_old_python_is_reported(project, monkeypatch):
    monkeypatch.setattr(venv, "wanted_python", lambda: None)
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer"):
        venv.main()


def test_heartbeat_runs_and_logs(tmp_path):
    log = tmp_path / "log"
    code = "print('Collecting torch'); print('Installing collected packages: a, b'); raise SystemExit(3)"
    assert venv.run_with_heartbeat([sys.executable, "-c", code], tmp_path, log) == 3
    assert "Collecting torch" in log.read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "  Downloading torch-2.15.0-cp311-cp311-manylinux_2_28_x86_64.whl (915.0 MB)",
            "downloading torch-2.15.0 (915.0 MB)",
        ),
        ("Collecting numpy==2.4.6", "looking for numpy==2.4.6"),
        ("Installing collected packages: a, b", "unpacking 2 packages"),
        ("Successfully installed a b", None),
        ("", None),
    ],
)
def test_progress(line, said):
    assert venv.progress(line.split()) == said


def test_lock_is_exact_and_names_no_platform():
    rows = [row for row in (ROOT / "requirements.lock").read_text().splitlines() if not row.startswith("#")]
    assert [row for row in rows if not re.fullmatch(r"[a-z0-9-]+==[0-9][\w.!]*", row)] == []
    assert [row for row in rows if load("lock").LEFT_OUT.match(row.split("==")[0])] == []
    assert {"torch", "timm", "lightning", "pytest", "ruff", "mypy"} <= {row.split("==")[0] for row in rows}


def test_the_lowest_versions_are_those_of_pyproject():
    project = {
        "dependencies": ["torch>=2.6"],
        "optional-dependencies": {
            "cli": ["jsonargparse[signatures]>=4.36"],
            "vision": ["convnn[cli]", "timm>=1.0.12"],
            "train": ["convnn[vision]"],
            "study": [],
            "export": ["onnx>=1.18"],
            "dev": ["ruff>=0.9"],
        },
    }
    lock = "# made by make lock\nhypothesis==6.1\nnumpy==2.0\npytest==8.3\npytest-xdist==3.6\n"
    assert load("lowest").constraints(project, lock) == [
        "hypothesis==6.1", "jsonargparse==4.36", "onnx==1.18", "pytest-xdist==3.6", "pytest==8.3", "timm==1.0.12",
        "torch==2.6",
    ]  # fmt: skip


def test_every_requirement_has_a_lowest_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *(r for extra in load("lowest").EXTRAS for r in extras[extra])]
    assert [r for r in needed if not r.startswith("convnn[") and load("lowest").lowest(r) is None] == []
    torch = next(r for r in project["dependencies"] if r.startswith("torch>="))
    assert f"PyTorch {torch.removeprefix('torch>=')} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_finished_runs_are_kept_without_paths_of_the_machine(tmp_path):
    study = tmp_path / "here" / "studies" / "layers"
    for seed, status in enumerate(("finished", "running")):
        run = study / "conv" / f"seed-{seed}"
        run.mkdir(parents=True)
        (run / "result.json").write_text(json.dumps({"status": status, "settings": {"out": str(run)}}))
        (run / "settings.yaml").write_text(f"out: {run}\n")
        (run / "last.ckpt").write_bytes(b"weights")
    (study / "comparison.json").write_text(json.dumps({"left_out": {str(study / "conv" / "seed-1"): "running"}}))
    results = tmp_path / "results"
    kept = load("keep_runs").keep(study, results)
    assert kept == [results / "runs/layers/conv/seed-0"]
    assert sorted(path.name for path in kept[0].iterdir()) == ["result.json", "settings.yaml"]
    assert (kept[0] / "settings.yaml").read_text() == "out: studies/layers/conv/seed-0\n"
    texts = [path.read_text() for path in results.rglob("*") if path.is_file()]
    assert len(texts) == 3
    assert not any(str(tmp_path) in text for text in texts)
