"""Hooks and parametrisations of a layer, which a replacement would lose."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ..errors import invalid

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def check_no_attachments(argument: str, layer: nn.Module) -> None:
    """Raise ConvNNError for a layer that is lazy, parametrised (weight norm) or hooked."""
    name = type(layer).__name__
    if isinstance(layer, LazyModuleMixin):
        fix = "run the model once, so that its lazy layers are made"
        raise invalid(argument, "a layer with its weights", name, fix)
    if parametrize.is_parametrized(layer):
        fix = "remove the parametrisation (e.g. weight norm) first"
        raise invalid(argument, "a layer without parametrisations", name, fix)
    hooks = [hook for hook in _HOOKS if getattr(layer, hook, None)]
    if hooks:
        fix = "remove the hooks, replace the layer, and add them again"
        raise invalid(argument, "a layer without hooks", f"{name} with {', '.join(hooks)}", fix)
