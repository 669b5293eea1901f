"""Comparison of an exported model with the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..errors import ConvNNError, invalid
from .trace import deterministic, dtype_of, example_images

TOLERANCE = 1e-4
"""The largest difference of logits; relative to the largest logit of an image if that is below 1."""
EXACT = 1e-9
"""The same in double precision, equal similarities decided alike."""
_DRAWS = 8
_MARGIN = 4.0


class Comparison(NamedTuple):
    """Comparison of an exported model's logits with the model's.

    Attributes:
        difference: the largest on images whose logits agree.
        agreeing: the number of such images.
        images: the number of images.
        exact: the largest difference in double precision, or None for a model in half precision.
    """

    difference: float
    agreeing: int
    images: int
    exact: float | None

    def __str__(self) -> str:
        exact = "" if self.exact is None else f"{self.exact:.1e} in double precision"
        moved = "rounding moves the model's own logits as far"
        if not self.agreeing:
            return f"largest difference {exact or 'unknown'} ({moved} on all {self.images} images)"
        seen = f"largest difference {self.difference:.1e} on "
        if self.agreeing == self.images:
            seen += f"{self.images} images"
        else:
            seen += f"{self.agreeing} of {self.images} images ({moved} on the others)"
        return ", ".join(filter(None, [seen, exact]))


def compare(
    run: Callable[[Tensor], Tensor],
    program: ExportedProgram,
    model: nn.Module,
    *,
    shape: tuple[int, int, int],
    batches: tuple[int, ...],
) -> Comparison:
    """Compare an exported model's logits with the model's, on random images: those of ``run`` and of ``program``.

    Selection is discontinuous: if two keys are equally similar up to rounding, another order of additions can exchange
    them, and later layers can amplify the difference. So the traced program is compared in double precision, with ties
    decided alike. The exported file runs in single precision; there, a difference above ``TOLERANCE`` is accepted only
    if ties and rounding alone move the model's own logits on the same image as far.

    Raises ConvNNError for a difference that these do not explain.
    """
    largest, agreeing = 0.0, 0
    exact = _exact_difference(program, model, example_images(model, shape, batches[0]))
    for seed, batch in enumerate(batches, start=1):
        images = example_images(model, shape, batch, seed=seed)
        with torch.no_grad():
            expected, got = model(images), run(images)
        if got.shape != expected.shape or not bool(got.isfinite().all()):
            got_text = f"shape {tuple(got.shape)}" if got.shape != expected.shape else "nan or inf"
            raise _mismatch(f"{got_text} for {batch} images, where the model gives {tuple(expected.shape)}")
        differences = _distances(got, expected)
        agree = differences <= TOLERANCE * _scale(expected)
        if not bool(agree.all()):
            moved = _moved_by_ties(model, images[~agree])
            if bool((differences[~agree] > _MARGIN * moved).any()):
                worst = float(differences.max())
                raise _mismatch(f"a difference of {worst:.1e} (ties and rounding alone: {float(moved.max()):.1e})")
        if bool(agree.any()):
            largest = max(largest, float(differences[agree].max()))
        agreeing += int(agree.sum())
    return Comparison(largest, agreeing, sum(batches), exact)


def _exact_difference(program: ExportedProgram, model: nn.Module, images: Tensor) -> float | None:
    """Compare a traced program with its model in double precision, both taking equal similarities lowest first."""
    if dtype_of(model) not in (torch.float32, torch.float64):  # its program rounds in between, as the model does
        return None
    with torch.no_grad():
        with deterministic(True):
            expected = copy.deepcopy(model).double()(images.double())
        got = _in_double_precision(program)(images.double())
    differences = _distances(got, expected)
    if not bool((differences <= EXACT * _scale(expected)).all()):
        raise _mismatch(f"a difference of {float(differences.max()):.1e} in double precision")
    return float(differences.max())


def _in_double_precision(program: ExportedProgram) -> nn.Module:
    """Return the program as a module for double precision, with selections that take equal numbers lowest first."""
    module = program.module()
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in list(part.graph.nodes):
                if str(node.target).startswith("aten._assert_tensor_metadata"):
                    part.graph.erase_node(node)
                elif node.target is torch.ops.aten.topk.default:
                    node.target = _stable_topk
            part.recompile()
    return copy.deepcopy(module).double()


def _stable_topk(
    x: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,  # noqa: A002  # torch's names
) -> tuple[Tensor, Tensor]:
    values, index = x.sort(dim=dim, descending=largest, stable=True)
    return values.narrow(dim, 0, k), index.narrow(dim, 0, k)


def _mismatch(got: str) -> ConvNNError:
    fix = "do not use the file, and report the model"
    return invalid("model", f"exported logits within {TOLERANCE:g} of the model's", got, fix)


def _scale(logits: Tensor) -> Tensor:
    """Return the largest logit of each image, ``(B,)``, at most 1."""
    return logits.double().abs().reshape(logits.shape[0], -1).amax(1).clamp(max=1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the largest difference of each image, ``(B,)``."""
    return (a.double() - b.double()).abs().reshape(a.shape[0], -1).amax(1)


def _moved_by_ties(model: nn.Module, images: Tensor) -> Tensor:
    """Return how far each image's logits move, ``(B,)``, when ties are decided or last bits are rounded otherwise."""
    exact = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(0)
    # Rounding adds up from layer to layer: some tens of last places, of half precision one.
    eps = torch.finfo(dtype_of(model)).eps
    grain = min(64 * eps, max(eps, 1e-3))
    with torch.no_grad():
        expected, others = exact(images.double()), [model(images)]
        with deterministic(True):
            others += [model(images), exact(images.double())]
        for _ in range(_DRAWS):
            noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
            others.append(exact(images.double() * (1 + grain * noise)))
    return torch.stack([_distances(other, expected) for other in others]).amax(0)
