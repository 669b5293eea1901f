"""The native forms of the operators: twins of the same meaning, which the C library runs on CPUs.

Sums are in float32; half-precision values are converted. On other devices, and where a program reaches a machine
without the library, the operator itself runs.
"""

from .bags import native_bag_scatter, native_bag_sum, native_pair_distance, native_pair_product
from .sampled import native_sampled_mix, native_sampled_mix_backward
from .search import MOST_K, native_nearest, native_nearest_euclidean
from .slots import native_slot_mix, native_slot_mix_backward

__all__ = [
    "MOST_K",
    "native_bag_scatter",
    "native_bag_sum",
    "native_nearest",
    "native_nearest_euclidean",
    "native_pair_distance",
    "native_pair_product",
    "native_sampled_mix",
    "native_sampled_mix_backward",
    "native_slot_mix",
    "native_slot_mix_backward",
]
