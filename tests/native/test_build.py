"""The compilation of the native library: what it does without a compiler, and what each file may hold."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convnn.native import build, signatures

from .conftest import X86

PACKAGE = build.FOLDER.parent


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CONVNN_NATIVE")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120,
        env={**environment, **variables},
    )  # fmt: skip


def disassembly(path: Path) -> str:
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    return subprocess.run(["objdump", "-d", str(path)], capture_output=True, text=True, check=True).stdout


def defined(path: Path, *options: str) -> set[str]:
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    done = subprocess.run(["nm", *options, "--defined-only", str(path)], capture_output=True, text=True, check=True)
    return {line.split()[-1].removeprefix("_convnn").removeprefix("convnn") for line in done.stdout.splitlines()}


def test_without_a_compiler_the_package_works_and_says_so(tmp_path):
    skipped = shutil.ignore_patterns("__pycache__", "_convnn.*", build.RECORD)
    copy = shutil.copytree(PACKAGE, tmp_path / "src" / "convnn", ignore=skipped)
    # -I and -S: nothing but the standard library.
    done = run("-I", "-S", str(copy / "native" / "build.py"), PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    reason = "no C compiler (cc, gcc, clang) was found"
    assert done.stdout == f"The native library was not compiled ({reason}): convnn runs in plain PyTorch.\n"
    assert json.loads((copy / "native" / build.RECORD).read_text())["reason"] == reason
    code = (
        "import torch, convnn\nfrom convnn import native\nprint(convnn.__file__)\n"
        "print(convnn.ConvNN2d(3, 4, k=9)(torch.randn(1, 3, 8, 8)).shape[1])\nprint(native.level(), native.why_not())"
    )
    said = run("-c", code, PYTHONPATH=str(copy.parent)).stdout.splitlines()
    assert said[:2] == [str(copy / "__init__.py"), "4"]
    assert said[2] == f"None it is not compiled: {reason}; to try again, run python -m convnn.native"


def test_a_compiler_that_is_named_is_the_only_one_that_is_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler -x")
    assert build.build(tmp_path).reason == "CC is 'no-such-compiler -x', which was not found"
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'x.c:1:1: error: no licence' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    built = build.build(tmp_path)
    assert (built.library, built.reason) == (None, f"{broken}: no licence")
    assert build.read_record(tmp_path) == built


def test_nothing_is_compiled_where_that_is_asked_for(monkeypatch, tmp_path, compiler):
    assert build.build(tmp_path).library
    monkeypatch.setenv("CONVNN_BUILD_NATIVE", "0")
    assert build.build(tmp_path).reason == "CONVNN_BUILD_NATIVE is 0"
    assert [path.name for path in tmp_path.iterdir()] == [build.RECORD]  # the library of before is gone


def test_changed_sources_are_noticed_and_compiled_again(monkeypatch, tmp_path, compiler, capsys):
    sources = shutil.copytree(build.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(build, "SOURCES", sources)
    arguments = ["--if-changed", "--out", str(tmp_path / "out")]
    assert build.main(arguments) == 0
    assert capsys.readouterr().out.startswith("The native library was compiled by ")
    assert build.main(arguments) == 0
    assert capsys.readouterr().out == "The native library is compiled (it is up to date).\n"
    with (sources / "parallel.c").open("a") as file:
        file.write("/* changed */\n")
    assert not build.is_current(tmp_path / "out")
    build.main(arguments)
    assert build.is_current(tmp_path / "out")


def test_sources_that_do_not_compile_leave_the_reason(monkeypatch, tmp_path, compiler):
    sources = shutil.copytree(build.SOURCES, tmp_path / "csrc")
    monkeypatch.setattr(build, "SOURCES", sources)
    (sources / "dispatch.c").write_text("#error a mistake\n")
    built = build.build(tmp_path / "out")
    assert (built.library, built.levels) == (None, [])
    assert built.reason == "a mistake"


@pytest.mark.skipif(not X86, reason="needs an x86-64 processor")
def test_a_level_that_the_compiler_refuses_is_left_out(monkeypatch, tmp_path, compiler):
    old = tmp_path / "old"
    refusal = '*" -mavx512f "*) echo "cc: error: unrecognized option -mavx512f" >&2; exit 1;;'
    old.write_text(f'#!/bin/sh\ncase " $* " in {refusal} esac\nexec {" ".join(compiler)} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    built = build.build(tmp_path / "out")
    assert built.levels == ["baseline", "avx2"]
    assert built.left_out["avx512"] == "unrecognized option -mavx512f"
    library = ctypes.CDLL(str(tmp_path / "out" / str(built.library)))
    assert library.convnn_level_status(b"avx512") == 1
    assert library.convnn_level_status(b"sse") == -1
    assert library.convnn_set_level(b"avx512") == 1
    signatures.declare(library)
    assert library.convnn_level() == b"baseline"


@pytest.mark.skipif(not X86, reason="needs an x86-64 processor")
def test_common_code_has_no_instruction_of_a_level(tmp_path, compiler):
    wide = re.compile(r"%[yz]mm|\bv[a-z0-9]+\s+.*%xmm")
    present = [f"-DCONVNN_WITH_{level.upper()}" for level in ("avx2", "avx512")]
    for name in (*build.COMMON, "level_baseline"):
        assert not wide.search(disassembly(build.compile_unit(compiler, name, tmp_path, options=present)))
    for level, register in (("avx2", "%ymm"), ("avx512", "%zmm")):
        unit = build.compile_unit(compiler, f"level_{level}", tmp_path, options=build.LEVELS[level])
        assert register in disassembly(unit)  # the check above can fail


def test_a_level_defines_its_table_and_nothing_else(tmp_path, compiler):
    built = build.build(tmp_path)
    for level in built.levels:
        unit = build.compile_unit(compiler, f"level_{level}", tmp_path, options=build.LEVELS[level])
        assert defined(unit, "-g") == {f"_kernels_{level}"}


@pytest.mark.skipif(sys.platform != "linux", reason="nm of other systems has no dynamic symbols")
def test_only_the_interface_is_exported(tmp_path, compiler):
    built = build.build(tmp_path)
    names = {*signatures.KERNELS, *signatures.CONTROLS}
    assert defined(tmp_path / str(built.library), "-D") == {f"_{name}" for name in names}


def test_the_sources_compile_without_a_warning(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CONVNN_CFLAGS", "-Wall -Wextra -Werror")
    monkeypatch.setenv("CC", " ".join(compiler))
    assert build.build(tmp_path).reason is None
    monkeypatch.setattr(build, "SOURCES", shutil.copytree(build.SOURCES, tmp_path / "csrc"))
    with (build.SOURCES / "parallel.c").open("a") as file:
        file.write("static int unused;\n")
    assert "unused" in str(build.build(tmp_path).reason)


def test_the_types_of_ctypes_are_those_of_the_header():
    header = re.sub(r"/\*.*?\*/|\\\n", " ", (build.SOURCES / "convnn.h").read_text(), flags=re.DOTALL)
    kernels = re.findall(r"KERNEL\((\w+),\s*\(([^)]*)\),\s*\(([^)]*)\)\)", header)
    assert {name for name, _, _ in kernels} == set(signatures.KERNELS)
    types = {"int64_t": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float, "double": ctypes.c_double}
    for name, parameters, arguments in kernels:
        declared = [
            re.fullmatch(r"(?:const )?(?:struct )?(\w+) (\*?)\w+", part.strip()) for part in parameters.split(",")
        ]
        wanted = tuple(signatures.POINTER if part[2] else types[part[1]] for part in declared)
        assert signatures.KERNELS[name] == wanted, name
        assert [part.split()[-1].lstrip("*") for part in parameters.split(",")] == re.findall(r"\w+", arguments)
    functions = re.findall(r"CONVNN_API (?:const )?\w+ \*?convnn_(\w+)\(([^)]*)\)", header)
    found = {name: 0 if text == "void" else text.count(",") + 1 for name, text in functions}
    assert found == {name: len(arguments) for name, (_, arguments) in signatures.CONTROLS.items()}


def test_the_structures_of_ctypes_are_those_of_the_header():
    header = re.sub(r"/\*.*?\*/", " ", (build.SOURCES / "convnn.h").read_text(), flags=re.DOTALL)
    structures = dict(re.findall(r"struct convnn_(\w+) \{(.*?)\};", header, flags=re.DOTALL))
    assert set(structures) == set(signatures.STRUCTURES)
    for name, body in structures.items():
        fields = []
        for line in filter(str.strip, body.split(";")):
            kind, names = re.fullmatch(r"\s*(?:const )?(\w+) (.*)", line, flags=re.DOTALL).groups()
            for field in names.split(","):
                pointer, array = "*" in field, "[3]" in field
                number = signatures._STRIDES if array else signatures.SIZE
                assert pointer or kind == "int64_t", (name, field)
                fields.append((field.strip(" *\n").removesuffix("[3]"), signatures.POINTER if pointer else number))
        assert signatures.STRUCTURES[name]._fields_ == fields


@pytest.mark.skipif(not X86 or shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64")
def test_a_processor_of_2008_runs_the_baseline(tmp_path, compiler):
    built = build.build(tmp_path)
    code = (
        "import ctypes, sys\nlibrary = ctypes.CDLL(sys.argv[1])\n"
        "print([library.convnn_level_status(name) for name in (b'baseline', b'avx2', b'avx512')])\n"
        "a, out = (ctypes.c_float * 20)(*range(20)), (ctypes.c_float * 2)()\n"
        "library.convnn_row_dots(a, a, out, ctypes.c_int64(2), ctypes.c_int64(10))\nprint(list(out))"
    )
    old = ["qemu-x86_64", "-cpu", "Nehalem", sys.executable, "-I", "-S"]
    command = [*old, "-c", code, str(tmp_path / str(built.library))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.splitlines() == ["[0, 2, 2]", "[285.0, 2185.0]"], done.stderr
