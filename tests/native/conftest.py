"""What the tests of the native library need: a compiler, the library, its parallel_for."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from pathlib import Path

import pytest

from convnn import native
from convnn.native import build

X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a C compiler."""
    try:
        return build.find_compiler(tmp_path_factory.mktemp("compiler"))[0]
    except build.CompilerError as error:
        pytest.skip(f"needs a C compiler: {error}")


@pytest.fixture
def library() -> ctypes.CDLL:
    """The native library."""
    if native.why_not():
        pytest.skip(f"needs the native library: {native.why_not()}")
    return native.library()


@pytest.fixture(scope="session")
def probe(compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """parallel.c with a function that reports what its ranges are and which threads run them."""
    folder = tmp_path_factory.mktemp("probe")
    sources = [str(Path(__file__).with_name("probe.c")), str(build.SOURCES / "parallel.c")]
    made = folder / build.library_name()
    command = [*compiler, *build.OPTIONS, "-shared", f"-I{build.SOURCES}", *sources, "-o", str(made)]
    subprocess.run(command, check=True, timeout=120)
    library = ctypes.CDLL(str(made))
    library.convnn_use_torch.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    return library
