"""tools/wheels.py: what is wrong with a wheel is found."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path

import pytest

from convnn.native import build

TOOL = Path(__file__).resolve().parents[2] / "tools" / "wheels.py"
SPEC = importlib.util.spec_from_file_location("tools_wheels", TOOL)
wheels = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(wheels)

X86 = "manylinux_2_17_x86_64"
ALL = ["baseline", "avx2", "avx512"]


def faults(folder: Path, platform: str, library: bytes | None, levels: list[str]) -> list[str]:
    path = folder / f"convnn-0.1.0-py3-none-{platform}.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("convnn/native/build.json", json.dumps({"levels": levels}))
        if library is not None:
            made.writestr("convnn/native/_convnn.so", library)
    found: list[str] = wheels.faults(path)
    return found


@pytest.mark.parametrize(
    ("platform", "library", "levels", "expected"),
    [
        (X86, b"\0GLIBC_2.2.5\0GLIBC_2.17\0libc.so.6\0", ALL, []),
        (X86, b"GLIBC_2.34\0GLIBC_2.17\0", ALL, ["it needs glibc 2.34"]),
        (X86, b"libgomp.so.1\0libstdc++.so.6", ALL, ["it needs libgomp", "it needs libstdc++"]),
        (X86, b"", ["baseline"], [f"expected the levels {ALL}, got ['baseline']"]),
        (X86, None, [], ["expected one library, got []"]),
        ("macosx_11_0_arm64", b"", ["baseline", "neon"], []),
        ("any", None, [], []),
        ("any", b"", ALL, ["a pure wheel has convnn/native/_convnn.so"]),
    ],
)
def test_faults(tmp_path, platform, library, levels, expected):
    assert faults(tmp_path, platform, library, levels) == expected


def test_its_platforms_are_those_that_can_be_compiled():
    assert set(wheels.LEVELS) == set(build.PLATFORMS)


def test_an_unknown_platform_and_missing_packages(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wheels.py", "win_amd64"])
    with pytest.raises(SystemExit):
        wheels.main()
    assert "PLATFORM: expected some of manylinux_2_17_x86_64, " in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["wheels.py", "any"])
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="run: pip install hatchling ziglang"):
        wheels.main()
