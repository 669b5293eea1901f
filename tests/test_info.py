"""convnn info: what is installed, in words and as JSON."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError

import pytest
import torch

from convnn import __version__, _info, native

from .command_line import run


def test_in_words(capsys):
    status, out, err = run(capsys, "info")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:3] == [
        f"convnn    {__version__}", f"Python    {platform.python_version()}", f"PyTorch   {torch.__version__}",
    ]  # fmt: skip
    assert f"threads   {torch.get_num_threads()}" in lines
    assert any(line.endswith("cli: installed") for line in lines)
    reason = native.why_not()
    if reason is None:
        assert lines[3].startswith(f"native    {native.level()}, compiled by ")
        for name, why in native.levels().items():
            assert f"          {name}: {why or 'available'}" in lines
    else:
        assert lines[3] == f"native    not in use: {reason}"


def test_the_reason_is_said_where_it_is_off(capsys):
    with native.at_level("off"):
        assert "native    not in use: at_level('off')\n" in run(capsys, "info")[1]


def test_as_json(capsys, tmp_path):
    status, out, _ = run(capsys, "info", "--json", "-")
    assert status == 0
    found = json.loads(out)
    assert found["native"]["levels"] == native.levels()
    assert found["threads"] == torch.get_num_threads()
    path = tmp_path / "info.json"
    assert run(capsys, "info", "--json", str(path))[1].startswith("convnn ")
    assert json.loads(path.read_text()) == found
    status, _, err = run(capsys, "info", "--json", str(tmp_path / "no" / "x.json"))
    assert status == 2
    assert err.startswith("convnn info: error: --json: expected a file that can be written, got ")


def test_extras(monkeypatch):
    wanted = ["torch>=2", "torch; extra == 'a'", "none-such[x]>=1; extra == 'a'", 'convnn[a]; extra == "b"']
    monkeypatch.setattr(_info.importlib.metadata, "requires", lambda _: [*wanted, "pytest>=8; extra == 'c'"])
    assert _info.extras() == {"a": ["none-such"], "b": ["none-such"], "c": []}


def test_extras_of_sources_without_an_installation(monkeypatch):
    def not_there(_: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(_info.importlib.metadata, "requires", not_there)
    assert _info.extras() == {}
    assert "extras" not in _info._text(_info.info())


@pytest.mark.parametrize("own", [True, False])
def test_threads_of_its_own_are_said(own):
    native_part = {"level": "avx2", "why_not": None, "levels": {}, "compiler": "cc", "on_torch_threads": not own}
    text = _info._text({"versions": {}, "native": native_part, "threads": 3, "extras": {}})
    assert ("threads of their own" in text) == own
