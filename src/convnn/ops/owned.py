"""Results of custom operators as tensors of their own."""

from __future__ import annotations

from torch import Tensor


def owned(result: Tensor) -> Tensor:
    """Return a new tensor over the memory of one that was made here, in its layout, without a copy.

    Autograd records the views that are made inside a custom operator, and refuses to let a view that an operator
    returns be modified in place. The tensor returned here is no view of another.

    >>> import torch
    >>> owned(torch.zeros(3, 2).t())._is_view(), owned(torch.zeros(3, 2).t()).stride()
    (False, (1, 2))
    """
    own: Tensor = result.new_empty(0).set_(result)  # type: ignore[call-overload]  # a source may be a tensor
    return own
