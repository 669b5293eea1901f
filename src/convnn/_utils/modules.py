"""Changes to modules that several applications make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn


def put(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the module called ``name`` in a model.

    >>> model = nn.Sequential(nn.Sequential(nn.ReLU()))
    >>> put(model, "0.0", nn.GELU())
    >>> model[0]
    Sequential(
      (0): GELU(approximate='none')
    )
    """
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def evaluating(model: nn.Module) -> AbstractContextManager[None]:
    """Put the model in eval mode for a while; afterwards every submodule has the mode that it had."""
    return in_mode(model, training=False)


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the model in training or in eval mode for a while; afterwards every submodule has the mode that it had.

    >>> model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with in_mode(model, training=False):
    ...     print([part.training for part in model])
    [False, False]
    >>> [part.training for part in model]
    [True, False]
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
