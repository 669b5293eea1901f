"""The native library: kernels in C for the operators, loaded with ctypes at their first use.

``csrc`` has its sources, ``build`` compiles them, and without the library every operator runs in plain PyTorch.
"""

from .loading import at_level, level, levels, library, on_torch_threads, why_not

__all__ = ["at_level", "level", "levels", "library", "on_torch_threads", "why_not"]
