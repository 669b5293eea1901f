"""The functions of the native library, with their types: what ``csrc/convnn.h`` declares, for ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor

POINTER, SIZE = ctypes.c_void_p, ctypes.c_int64
"""An address, ``tensor.data_ptr()``, and a number of elements."""

_STRIDES = ctypes.c_int64 * 3


class _Problem(ctypes.Structure):
    """A structure of convnn.h, made from its sizes, tensors and strides by name."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**{name: self._number(value) for name, value in fields.items() if value is not None})

    @staticmethod
    def _number(value: Any) -> Any:
        return (
            value.data_ptr() if isinstance(value, Tensor) else _STRIDES(*value) if isinstance(value, tuple) else value
        )


def _fields(sizes: str, pointers: str, strides: str = "") -> list[tuple[str, Any]]:
    types = ((sizes, SIZE), (pointers, POINTER), (strides, _STRIDES))
    return [(name, kind) for names, kind in types for name in names.split()]


class SearchProblem(_Problem):
    """``struct convnn_search``."""

    _fields_ = _fields("batch queries keys channels k", "query key bias masked skip index", "query_stride key_stride")


class EuclideanProblem(_Problem):
    """``struct convnn_euclidean``."""

    _fields_ = _fields(
        "batch queries keys channels axes k",
        "query key factor query_position key_position masked skip index",
    )


class SlotsProblem(_Problem):
    """``struct convnn_slots``."""

    _fields_ = _fields(
        "batch queries values channels out k added_rows added_k",
        "value weight rho grad index bias added added_index result grad_value grad_weight grad_rho",
        "value_stride weight_stride grad_stride result_stride grad_value_stride grad_weight_stride",
    )


class BagsProblem(_Problem):
    """``struct convnn_bags``."""

    _fields_ = _fields(
        "batch queries rows channels k by_slot",
        "table source weight vectors index result",
        "table_stride source_stride",
    )


STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "search": SearchProblem,
    "euclidean": EuclideanProblem,
    "slots": SlotsProblem,
    "bags": BagsProblem,
}
"""The structures ``convnn_<name>``; a test compares their fields with the header."""

KERNELS: dict[str, tuple[Any, ...]] = {
    "row_dots": (POINTER, POINTER, POINTER, SIZE, SIZE),
    "search": (POINTER,),
    "search_euclidean": (POINTER,),
    "slot_mix": (POINTER,),
    "slot_mix_backward": (POINTER,),
    "bag_sum": (POINTER,),
    "bag_scatter": (POINTER,),
    "pair_product": (POINTER,),
    "pair_distance": (POINTER,),
    "vector_gradient": (POINTER,),
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

NO_MEMORY, NO_THREADS, BAD_INDEX = 1, 2, 3  # what a kernel returns where it fails; 0 where it does not


def address(problem: ctypes.Structure) -> int:
    """Return the address of a structure, which must live until the call ends."""
    return ctypes.addressof(problem)


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
    if result == BAD_INDEX:
        raise IndexError(
            f"{function.__name__}: an index is not one of a row; neighbours count tokens of the keys from 0"
        )
    return result
