"""torch.func over layers and functionals: grad, vjp, jacrev, vmap and per-sample gradients, as autograd gives them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vjp, vmap

from convnn import ConvNN2d, ConvNNError, knn_aggregate

from . import layers
from .layers import LAYERS, MAPS


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        yield


def make(name: str) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    layer = layers.make(name).double().eval()
    parameters = {key: parameter.detach() for key, parameter in layer.named_parameters()}
    return layer, parameters, layers.example(name, batch=3, dtype=torch.float64)


def differentiated(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return what autograd gives: the gradients of the sum of squares, by the input and by the parameters."""
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()], materialize_grads=True))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name: str) -> None:
    layer, parameters, x = make(name)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()  # type: ignore[no-any-return]

    of_parameters, of_input = grad(loss, argnums=(0, 1))(parameters, x)
    expected = differentiated(layer, x)
    torch.testing.assert_close([of_input, *of_parameters.values()], expected)
    assert of_input.stride() == x.stride()
    y, pull = vjp(lambda x: functional_call(layer, parameters, (x,)), x)
    torch.testing.assert_close(pull(2 * y)[0], expected[0])
    row = x[:1].clone().requires_grad_()
    some = layer(row).flatten()[:3]
    jacobian = torch.stack([torch.autograd.grad(part, row, retain_graph=True)[0] for part in some])
    found = jacrev(lambda x: functional_call(layer, parameters, (x,)).flatten()[:3])(x[:1])
    torch.testing.assert_close(found, jacobian)


@pytest.mark.parametrize(
    ("name", "channels_last"),
    [*((name, False) for name in LAYERS), *((name, True) for name in MAPS)],
)
def test_gradients_per_sample(name: str, channels_last: bool) -> None:
    layer, parameters, x = make(name)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(layer, parameters, (sample.unsqueeze(0),)).square().sum()  # type: ignore[no-any-return]

    of_parameters, of_input = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))(parameters, x)
    for i in range(x.shape[0]):
        expected = differentiated(layer, x[i : i + 1])
        found = [of_input[i : i + 1], *(part[i] for part in of_parameters.values())]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["all", "random", "euclidean", "sum", "k-NN attention"])
def test_second_derivatives(name: str) -> None:
    layer, parameters, x = make(name)

    def loss(x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).square().sum()  # type: ignore[no-any-return]

    direction = torch.randn_like(x[:1])
    found = grad(lambda x: (grad(loss)(x) * direction).sum())(x[:1])
    row = x[:1].clone().requires_grad_()
    first = torch.autograd.grad(layer(row).square().sum(), row, create_graph=True)[0]
    torch.testing.assert_close(found, torch.autograd.grad((first * direction).sum(), row)[0])


def test_an_ensemble_of_parameters() -> None:
    layer, parameters, x = make("random")
    stacked = {name: torch.stack([part, 2 * part]) for name, part in parameters.items()}
    y = vmap(lambda parameters, x: functional_call(layer, parameters, (x,)), in_dims=(0, None))(stacked, x)
    torch.testing.assert_close(y, torch.stack([layer(x), 2 * layer(x)]))


def test_random_candidates_in_training_follow_vmap_s_randomness() -> None:
    layer, parameters, x = make("random")
    layer.train()
    run = vmap(lambda x: functional_call(layer, parameters, (x.unsqueeze(0),)), randomness="same")
    same = run(x[:1].expand(3, -1, -1, -1))
    torch.testing.assert_close(same[0], same[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: functional_call(layer, parameters, (x.unsqueeze(0),)))(x)


def test_the_functional() -> None:
    x, weight = torch.randn(2, 8, 4, dtype=torch.float64), torch.randn(5, 4, 3, dtype=torch.float64)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return knn_aggregate(x, x, x, weight, k=3, weighting="softmax").square().sum()

    inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    expected = torch.autograd.grad(loss(*inputs), inputs)
    torch.testing.assert_close(grad(loss, argnums=(0, 1))(x, weight), expected)


@pytest.mark.parametrize("name", ["all", "random", "euclidean", "positions", "sum", "k-NN attention"])
def test_forward_mode_is_refused_and_not_wrong(name: str) -> None:
    layer, parameters, x = make(name)
    layer.requires_grad_(False)
    tangent = torch.ones_like(x)

    def call(x: Tensor) -> Any:
        return functional_call(layer, parameters, (x,))

    def dual() -> None:
        with forward_ad.dual_level():
            layer(forward_ad.make_dual(x, tangent))

    for run in (lambda: jvp(call, (x,), (tangent,)), lambda: jacfwd(call)(x[:1]), dual):
        with pytest.raises(ConvNNError, match="impl: expected 'dense' for forward-mode differentiation"):
            run()


def test_forward_mode_of_the_dense_implementation() -> None:
    layer = ConvNN2d(4, 4, 3, weighting="softmax", impl="dense").double()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(jacfwd(layer)(x), jacrev(layer)(x))
