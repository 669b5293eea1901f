"""What a model costs: parameters, FLOPs in three conventions, activation memory and milliseconds, layer by layer."""

from .counting import CONVENTIONS, count_flops, count_parameters
from .modes import evaluating
from .profiling import Profile, ProfileRow, profile

__all__ = [
    "CONVENTIONS",
    "Profile",
    "ProfileRow",
    "count_flops",
    "count_parameters",
    "evaluating",
    "profile",
]
