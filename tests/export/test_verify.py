"""What is taken for the same outputs, and what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import convnn
from convnn.errors import ConvNNError
from convnn.export import trace, verify

SHAPE = (3, 8, 8)


def steady() -> nn.Module:
    """A network in which nothing is selected."""
    torch.manual_seed(0)
    return trace.for_export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))


class Chaos(nn.Module):
    """Makes so much of the last digit of its input as a deep network can make of a tie."""

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1).sum(1, keepdim=True) * 1e9).sin()


def compare(run: Callable[[Tensor], Tensor], model: nn.Module) -> verify.Comparison:
    program = trace.trace(model, trace.example_images(model, SHAPE, 2), any_batch=True)
    return verify.compare(run, program, model, shape=SHAPE, batches=(1, 3))


def test_the_same_is_the_same() -> None:
    found = compare(model := steady(), model)
    assert (found.difference, found.agreeing, found.images) == (0, 4, 4)
    assert found.exact is not None
    assert found.exact < 1e-12
    assert str(found).startswith("largest difference 0.0e+00 on 4 images, ")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda y: y + 1e-3, "a difference of 1.0e-03"),
        (lambda y: y[:, :-1], r"shape \(1, 143\) for 1 images"),
        (lambda y: y * torch.nan, "nan or inf for 1 images"),
        (lambda y: y.flip(0).roll(1, 1), "a difference of"),
    ],
    ids=["shifted", "cut", "nan", "mixed up"],
)
def test_others_are_not(wrong, words) -> None:
    model = steady()
    with pytest.raises(
        ConvNNError, match=f"^model: expected exported logits within 0.0001 of the model's, got {words}"
    ):
        compare(lambda images: wrong(model(images)), model)


def test_a_program_that_differs_in_double_precision_is_refused() -> None:
    model = steady()
    program = trace.trace(copy.deepcopy(model), trace.example_images(model, SHAPE, 2), any_batch=True)
    with torch.no_grad():
        model[0].weight.mul_(1 + 1e-6)  # too little to be seen in single precision
    with pytest.raises(ConvNNError, match="in double precision"):
        verify.compare(model, program, model, shape=SHAPE, batches=(1, 3))


def test_what_rounding_exchanges_is_no_mistake() -> None:
    model = trace.for_export(Chaos())
    found = compare(lambda images: model(images * (1 + 1e-7)), model)
    assert (found.agreeing, found.exact) == (0, 0)
    assert "rounding moves the model's own logits as far on all 4 images" in str(found)


def test_exact_ties_are_decided_alike() -> None:
    """Tokens without a common channel are equally similar: any may be chosen, and the first are compared."""
    layer = convnn.ConvNN2d(3, 4, k=5, candidates=convnn.Random(12), candidate_padding=1)
    model = trace.for_export(nn.Sequential(nn.ReLU(), nn.Threshold(1.0, 0.0), layer, nn.Flatten()))
    found = compare(model, model)
    assert found.exact is not None
    assert found.exact < 1e-9


def test_half_precision_is_held_against_its_own_rounding() -> None:
    model = steady().to(torch.bfloat16)
    found = compare(lambda images: (model(images).float() * 1.002).bfloat16(), model)
    assert found.exact is None
    assert 0 <= found.agreeing < 4
