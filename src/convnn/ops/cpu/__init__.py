"""Kernels for CPUs, tuned to PyTorch's on one kind of processor: importing them registers them.

The operators compute the same without them, by their plain forms; a native library can replace them all.
"""

from . import bags, euclidean, nearest, product, sampled, slots  # noqa: F401
