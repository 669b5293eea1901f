"""Compile the native library: ``python src/convnn/native/build.py``, or ``python -m convnn.native``.

The standard library only, and nothing of convnn: pip's build loads this file by its path. What was done, or why
nothing was, is in ``build.json`` beside the library.

Environment variables: ``CC``, the compiler (also of several words: ``python -m ziglang cc``); ``CONVNN_CFLAGS``,
options for it in addition to ours (``-fsanitize=address -g``); ``CONVNN_BUILD_NATIVE=0``, to compile nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "csrc"
RECORD = "build.json"
COMMAND = "python -m convnn.native"
COMPILERS = ("cc", "gcc", "clang")
COMMON = ("dispatch", "parallel")
PLATFORMS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
}
"""Platforms of wheels, and what ziglang calls them."""
LEVELS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"),
    "neon": (),
}
"""The levels, from the slowest to the fastest, and the options with which each is compiled. No other file has them."""
# Never -ffast-math: nan and infinities keep their meaning.
OPTIONS = ("-std=gnu11", "-O3", "-g0", "-fno-math-errno", "-fPIC", "-fvisibility=hidden", "-pthread")
SECONDS = 600  # of one call of the compiler


@dataclass
class Built:
    """What a build did: the record in ``build.json``."""

    sources: str
    """SHA-256 of what the library is compiled from."""
    library: str | None = None
    """The file's name; None where nothing was compiled, and ``reason`` says why."""
    reason: str | None = None
    compiler: str | None = None
    levels: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Levels that this compiler could not compile, each with what it said."""

    def __str__(self) -> str:
        if self.library is None:
            return f"The native library was not compiled ({self.reason}): convnn runs in plain PyTorch."
        return f"The native library was compiled by {self.compiler}, levels {', '.join(self.levels)}."


class CompilerError(Exception):
    """The compiler is missing, or refuses; the message says what it said."""


def library_name(target: str | None = None) -> str:
    """Return the file name of the library on this system, or on that of a target as ziglang names it.

    >>> library_name("aarch64-linux-gnu.2.17"), library_name("aarch64-macos.11.0")
    ('_convnn.so', '_convnn.dylib')
    """
    return "_convnn.dylib" if ("macos" in target if target else sys.platform == "darwin") else "_convnn.so"


def sources_digest() -> str:
    """Return the SHA-256 of the C sources and of this file, which has their options.

    >>> len(sources_digest())
    64
    """
    files = [*sorted(SOURCES.glob("*.[ch]")), Path(__file__)]
    texts = [path.read_bytes().replace(b"\r\n", b"\n") for path in files]  # the same in a checkout of any system
    return hashlib.sha256(b"\0".join([*(path.name.encode() for path in files), *texts])).hexdigest()


def read_record(folder: Path = FOLDER) -> Built | None:
    """Return the record of a build; None where there is none that can be read.

    >>> read_record(Path("no such folder")) is None
    True
    """
    try:
        return Built(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_current(folder: Path = FOLDER) -> bool:
    """Return True if the library of a folder is there, compiled from the sources as they are.

    >>> is_current(Path("no such folder"))
    False
    """
    record = read_record(folder)
    there = record is not None and record.library is not None and (folder / record.library).is_file()
    return there and record is not None and record.sources == sources_digest()


def build(folder: Path = FOLDER, *, target: str | None = None) -> Built:
    """Compile the library into a folder, and write the record beside it. Without a compiler there is only the record.

    Args:
        folder: where both go.
        target: the system to compile for, as ziglang names it; ``CC`` must be ``python -m ziglang cc`` then.
    """
    built = Built(sources_digest())
    with tempfile.TemporaryDirectory(prefix="convnn-") as scratch:
        made = Path(scratch) / library_name(target)
        try:
            if os.environ.get("CONVNN_BUILD_NATIVE") == "0":
                raise CompilerError("CONVNN_BUILD_NATIVE is 0")
            command, built.compiler = find_compiler(Path(scratch))
            if target is not None:
                command += ["-target", target]
            _link(command, _compile_all(command, Path(scratch), built), made, target)
            built.library = made.name
        except CompilerError as error:
            built.reason, built.levels, built.left_out = str(error), [], {}
        _put(built, made, folder)
    return built


def find_compiler(scratch: Path) -> tuple[list[str], str]:
    """Return the command of a C compiler that works, and its version. Raises where there is none."""
    if sys.platform == "win32":
        raise CompilerError("there is no native library for Windows")
    given = os.environ.get("CC", "").strip()
    commands = [shlex.split(given)] if given else [[name] for name in COMPILERS]
    if not any(shutil.which(command[0]) for command in commands):
        raise CompilerError(
            f"CC is {given!r}, which was not found" if given else "no C compiler (cc, gcc, clang) was found"
        )
    refused, trial = "", scratch / "trial.c"
    trial.write_text("int convnn_trial;\n")
    for command in commands:
        if not shutil.which(command[0]):
            continue
        version = _run([*command, "--version"])
        works = _run([*command, *OPTIONS, "-c", str(trial), "-o", str(trial.with_suffix(".o"))])
        if version.returncode == 0 and works.returncode == 0:
            return _with_portable_code(command), _version(version.stdout, command)
        refused = refused or f"{shlex.join(command)}: {_said(works if works.returncode else version)}"
    raise CompilerError(refused)


def _version(text: str, command: Sequence[str]) -> str:
    first = next(iter(text.splitlines()), "") or Path(command[0]).name
    return f"zig, {first}" if "ziglang" in command else first


def _with_portable_code(command: list[str]) -> list[str]:
    """Let zig compile for every processor; without a target it compiles for this one."""
    zig = "ziglang" in command or Path(command[0]).stem == "zig"
    return [*command, "-mcpu=baseline"] if zig else command


def _compile_all(command: Sequence[str], scratch: Path, built: Built) -> list[Path]:
    """Compile what is common and every level that this compiler can; return the objects."""
    objects = []
    for level, options in LEVELS.items():
        try:
            objects.append(compile_unit(command, f"level_{level}", scratch, options=options))
            built.levels.append(level)
        except CompilerError as error:
            if level == "baseline":
                raise
            built.left_out[level] = str(error)
    present = [f"-DCONVNN_WITH_{level.upper()}" for level in built.levels]
    return objects + [compile_unit(command, name, scratch, options=present) for name in COMMON]


def compile_unit(command: Sequence[str], name: str, folder: Path, *, options: Sequence[str] = ()) -> Path:
    """Compile one file of the sources; return the object. Raises with what the compiler said where it refuses."""
    out = folder / f"{name}.o"
    _checked([*command, *OPTIONS, *options, *_more(), "-c", str(SOURCES / f"{name}.c"), "-o", str(out)])
    return out


def _link(command: Sequence[str], objects: Sequence[Path], out: Path, target: str | None) -> None:
    named = [f"-Wl,-install_name,{out.name}"] if library_name(target).endswith(".dylib") else []
    _checked([*command, *OPTIONS, "-shared", *named, *map(str, objects), "-o", str(out), *_more()])


def _more() -> list[str]:
    return shlex.split(os.environ.get("CONVNN_CFLAGS", ""))


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(command, 1, "", f"it could not be run: {error}")


def _checked(command: Sequence[str]) -> None:
    done = _run(command)
    if done.returncode:
        raise CompilerError(_said(done))


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the first error of a compiler's output, without the file that has it."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    line = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it failed in silence")
    return line.rpartition("error: ")[2].removeprefix("#error ").strip('"')


def _put(built: Built, made: Path, folder: Path) -> None:
    """Put the library and its record into a folder, each in one step: a process that reads them sees whole files."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(built), indent=2) + "\n"
    if built.library is None:
        (folder / made.name).unlink(missing_ok=True)
    else:
        beside = folder / f"{made.name}.{os.getpid()}"
        shutil.copyfile(made, beside)
        os.replace(beside, folder / made.name)
    beside = folder / f"{RECORD}.{os.getpid()}"
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, folder / RECORD)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile the library, and say what was done; the exit status is 0 without a compiler too."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Compile the native library of convnn.")
    parser.add_argument("--if-changed", action="store_true", help="only where there is none of the sources as they are")
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder that it goes into; default: the package")
    given = parser.parse_args(arguments)
    if given.if_changed and is_current(given.out):
        print("The native library is compiled (it is up to date).")
        return 0
    built = build(given.out)
    print(built)
    for level, said in built.left_out.items():
        print(f"  without {level}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
