"""The native library: loaded at its first use, at the level of this processor that ``CONVNN_NATIVE`` allows."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import invalid, unknown_name
from . import build
from .signatures import declare

VARIABLE = "CONVNN_NATIVE"
LEVELS = tuple(build.LEVELS)
NEEDS = {
    "avx2": "AVX2 and FMA",
    "avx512": "AVX-512 F, DQ, BW and VL",
}
MACHINES = {"avx2": ("x86_64", "amd64"), "avx512": ("x86_64", "amd64"), "neon": ("aarch64", "arm64")}
THERE, NOT_COMPILED = 0, 1  # what convnn_level_status returns; CONVNN_LEVEL_* in convnn.h


class _Loaded(NamedTuple):
    """The library, or the reason why there is none."""

    library: ctypes.CDLL | None
    reason: str | None


class _State:
    """What this process has of the library."""

    def __init__(self) -> None:
        self.loaded: _Loaded | None = None
        self.loading = threading.Lock()  # two threads must not load it at once
        self.forked = False  # PyTorch's threads may be lost
        self.served = False  # a child of a forkserver, which had started none
        self.off = ""  # the reason that at_level("off") gives


_state = _State()


def why_not() -> str | None:
    """Return why the native library is not used; None where it is.

    Raises ConvNNError where the variable CONVNN_NATIVE names no level, or one that is not there.

    >>> (why_not() is None) == (level() is not None)
    True
    """
    return _state.off or _load().reason


def library() -> ctypes.CDLL:
    """Return the native library, its functions with their types.

    Ask for it before every call: where PyTorch lends no threads, this tells it how many it may start.

    >>> if why_not() is None:
    ...     a, b, out = torch.ones(2, 3), torch.full((2, 3), 2.0), torch.empty(2)
    ...     _ = library().convnn_row_dots(a.data_ptr(), b.data_ptr(), out.data_ptr(), 2, 3)
    ...     print(out.tolist() == [6.0, 6.0])
    ... else:
    ...     print(True)
    True
    """
    found = _load().library
    if found is None or _state.off:
        raise invalid("the native library", "one that can be used", "none", f"{why_not()}; use another implementation")
    if torch_addresses() == (None, None):
        found.convnn_set_threads(torch.get_num_threads())
    return found


def level() -> str | None:
    """Return the level in use; None where the library is not used.

    >>> level() in (None, "baseline", "avx2", "avx512", "neon")
    True
    """
    found = _load().library
    return None if found is None or _state.off else found.convnn_level().decode()


def levels() -> dict[str, str | None]:
    """Return every level with the reason why it cannot be used, None where it can: from the slowest to the fastest.

    >>> list(levels())
    ['baseline', 'avx2', 'avx512', 'neon']
    """
    found, reason = _load()
    if found is None or _state.off:
        return dict.fromkeys(LEVELS, _state.off or reason)
    return {name: _why_no_level(found, name) for name in LEVELS}


def on_torch_threads() -> bool:
    """Return True if the kernels run on PyTorch's threads, where it lends them; after a fork, if a forkserver's.

    >>> on_torch_threads() in (True, False)
    True
    """
    return torch_addresses()[0] is not None and not _state.forked


@contextmanager
def at_level(name: str) -> Iterator[None]:
    """Let the whole process use another level, or none with ``"off"``, until the block ends. For tests and timings.

    >>> with at_level("off"):
    ...     why_not()
    "at_level('off')"
    """
    found, before_off = _load().library, _state.off
    before = found.convnn_level().decode() if found else None
    try:
        _state.off = "at_level('off')" if name == "off" else ""
        if name != "off":
            _use(library(), name, "name")
        yield
    finally:
        _state.off = before_off
        if found and before:
            _use(found, before, "name")


def _load() -> _Loaded:
    if _state.loaded is None:
        with _state.loading:
            _state.loaded = _state.loaded or _load_once()
    return _state.loaded


def _load_once() -> _Loaded:
    wanted = os.environ.get(VARIABLE, "").strip() or "auto"
    if wanted not in ("auto", "off", *LEVELS):
        raise unknown_name(VARIABLE, wanted, ("auto", "off", *LEVELS))
    if wanted == "off":
        return _Loaded(None, f"{VARIABLE} is off")
    found, reason = _open(build.FOLDER)
    if found is None:
        if wanted != "auto":
            raise invalid(VARIABLE, "'auto' or 'off' without the library", repr(wanted), reason or "")
        record = build.read_record(build.FOLDER)
        if record is not None and record.library is not None:  # who compiled one counts on its speed
            warnings.warn(f"convnn runs in plain PyTorch, without its native library: {reason}", stacklevel=2)
        return _Loaded(None, reason)
    parallel_for, get_num_threads = torch_addresses()
    found.convnn_use_torch(None if _state.forked else parallel_for, get_num_threads)
    usable = [name for name in LEVELS if _why_no_level(found, name) is None]
    _use(found, usable[-1] if wanted == "auto" else wanted, VARIABLE)
    return _Loaded(found, None)


def _open(folder: Path) -> _Loaded:
    record = build.read_record(folder)
    if record is None:
        return _Loaded(None, f"it is not compiled; run {build.COMMAND}")
    if record.library is None:
        return _Loaded(None, f"it is not compiled: {record.reason}; to try again, run {build.COMMAND}")
    if record.sources != build.sources_digest():
        return _Loaded(None, f"it is compiled from other sources than those of this version; run {build.COMMAND}")
    try:
        return _Loaded(declare(ctypes.CDLL(str(folder / record.library))), None)
    except (OSError, AttributeError) as error:
        return _Loaded(None, f"it cannot be loaded ({error}); run {build.COMMAND}")


def _why_no_level(found: ctypes.CDLL, name: str) -> str | None:
    status = found.convnn_level_status(name.encode())
    if status == THERE:
        return None
    if name in MACHINES and platform.machine().lower() not in MACHINES[name]:
        return f"it is for {MACHINES[name][0]} processors"
    if status == NOT_COMPILED:
        record = build.read_record()
        said = record.left_out.get(name) if record else None
        return f"the compiler left it out: {said}"
    return f"this processor lacks {NEEDS[name]}, or its system does not save their registers"


def _use(found: ctypes.CDLL, name: str, argument: str) -> None:
    """Let all kernels use a level; raise where it cannot be used, ``argument`` being what names it."""
    if name not in LEVELS:
        raise unknown_name(argument, name, LEVELS)
    reason = _why_no_level(found, name)
    if reason is not None:
        usable = ", ".join(repr(other) for other in LEVELS if _why_no_level(found, other) is None)
        raise invalid(argument, f"a level that can be used here ({usable})", repr(name), reason)
    found.convnn_set_level(name.encode())


@functools.cache
def torch_addresses() -> tuple[int | None, int | None]:
    """Return the addresses of PyTorch's ``torch_parallel_for`` and ``torch_get_num_threads``; None for what it lacks.

    They are C functions of its stable interface, in a library that ``import torch`` has loaded.

    >>> all(address is None or address > 0 for address in torch_addresses())
    True
    """
    name = "libtorch_cpu.dylib" if build.library_name().endswith(".dylib") else "libtorch_cpu.so"
    for place in (str(Path(torch.__file__).parent / "lib" / name), None):  # None: all that the process has loaded
        try:
            loaded = ctypes.CDLL(place)
            functions = (loaded.torch_parallel_for, loaded.torch_get_num_threads)
        except (OSError, AttributeError):
            continue
        parallel_for, get_num_threads = (ctypes.cast(function, ctypes.c_void_p).value for function in functions)
        return parallel_for, get_num_threads
    return None, None


def _is_forkserver() -> bool:
    return any("multiprocessing.forkserver import main" in word for word in sys.orig_argv)


def _after_fork() -> None:
    """Leave PyTorch's threads in a child: GNU's OpenMP waits for ever for those of the parent, which are not there.

    The server of ``multiprocessing``'s forkserver has started none: its children keep them. Threads of our own would
    compete with PyTorch's, which wait for work on a processor of their own.
    """
    _state.loading = threading.Lock()
    if not _state.forked and not _state.served and _is_forkserver():
        _state.served = True
        return
    _state.forked = True
    if _state.loaded is not None and _state.loaded.library is not None:
        _state.loaded.library.convnn_use_torch(None, torch_addresses()[1])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
