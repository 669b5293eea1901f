"""The costs of a model: parameters, FLOPs in three conventions, activation memory and milliseconds, layer by layer."""

from .._utils.modules import evaluating
from .counting import CONVENTIONS, count_flops, count_parameters
from .profiling import profile
from .results import Profile, ProfileRow

__all__ = [
    "CONVENTIONS",
    "Profile",
    "ProfileRow",
    "count_flops",
    "count_parameters",
    "evaluating",
    "profile",
]
