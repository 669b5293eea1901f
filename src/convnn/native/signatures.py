"""The functions of the native library, with their types: what ``csrc/convnn.h`` declares, for ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64
"""An address, ``tensor.data_ptr()``, and a number of elements."""

KERNELS: dict[str, tuple[Any, ...]] = {
    "row_dots": (POINTER, POINTER, POINTER, SIZE, SIZE),
}
"""The arguments of ``convnn_<name>``, in their order; a test compares them with the header."""

CONTROLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "level": (ctypes.c_char_p, ()),
    "level_status": (ctypes.c_int, (ctypes.c_char_p,)),
    "set_level": (ctypes.c_int, (ctypes.c_char_p,)),
    "use_torch": (None, (POINTER, POINTER)),
    "set_threads": (None, (ctypes.c_int,)),
    "threads": (ctypes.c_int, ()),
}
"""The result and the arguments of every function that is no kernel."""

NO_MEMORY, NO_THREADS = 1, 2  # what a kernel returns where it fails; 0 where it does not


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Give the functions of a library their types; a kernel that fails raises."""
    for name, arguments in KERNELS.items():
        function = getattr(library, f"convnn_{name}")
        function.restype, function.argtypes, function.errcheck = ctypes.c_int, arguments, _check
    for name, (result, arguments) in CONTROLS.items():
        function = getattr(library, f"convnn_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _check(result: int, function: Any, arguments: tuple[Any, ...]) -> int:
    if result == NO_MEMORY:
        raise MemoryError(f"{function.__name__}: there is not enough memory for its scratch")
    if result == NO_THREADS:
        raise RuntimeError(f"{function.__name__}: PyTorch could not run it on its threads")
    return result
