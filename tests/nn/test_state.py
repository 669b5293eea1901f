"""What moves, loads, averages or recomputes a model leaves its candidates as they were given."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from convnn import ConvNN2d, ConvNNError, Random, conversion_report, convert

from ..layers import KINDS, example

POSITIONS = torch.tensor([30, 1, 17, 8, 5])
NAMES = ("ConvNN", "hybrid", "attention", "hybrid attention")
MAP = example("ConvNN", 6)


def emptied(make: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    twin = make(candidates=POSITIONS).to("meta").to_empty(device="cpu")
    twin.load_state_dict(layer.state_dict())
    return twin


def assigned(make: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    twin = make(candidates=POSITIONS).to("meta")
    twin.load_state_dict(layer.state_dict(), assign=True)
    return twin


def averaged(make: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    model = AveragedModel(layer, use_buffers=True)
    other = make(candidates=POSITIONS + 3)
    other.load_state_dict(layer.state_dict())
    for one in (layer, other, other):
        model.update_parameters(one)
    return model


def mapped(make: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    twin: nn.Module = torch.load(file, map_location="meta", weights_only=False)
    twin.load_state_dict(layer.state_dict(), assign=True)
    return twin


def compiled(make: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    return torch.compile(layer, fullgraph=True, backend="eager")


TREATMENTS: dict[str, Callable[[Callable[..., nn.Module], nn.Module], nn.Module]] = {
    "deepcopy": lambda make, layer: copy.deepcopy(layer),
    "pickle": lambda make, layer: pickle.loads(pickle.dumps(layer)),
    "there and back": lambda make, layer: copy.deepcopy(layer).double().float(),
    "to_empty": emptied,
    "assign": assigned,
    "average of buffers": averaged,
    "map_location": mapped,
    "compile": compiled,
}


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_positions_survive(name: str, treatment: str) -> None:
    make, x = KINDS[name], example(name, 36 if "attention" in name else 6)
    layer = make(candidates=POSITIONS)
    twin = TREATMENTS[treatment](make, layer)
    torch.testing.assert_close(twin(x), layer(x), rtol=1e-6, atol=1e-6)


def test_positions_are_those_given_whatever_becomes_of_the_tensor() -> None:
    given = POSITIONS.clone()
    layer = ConvNN2d(4, 4, k=3, candidates=given)
    expected = layer(MAP)
    given.zero_()
    assert torch.equal(layer(MAP), expected)
    assert set(layer.neighbors(MAP).index[..., 1:].unique().tolist()) <= set(POSITIONS.tolist())
    assert torch.equal(layer.candidates, POSITIONS)
    assert torch.equal(torch.export.export(layer, (MAP,)).module()(MAP), expected)


def test_a_report_counts_positions() -> None:
    model = convert(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), "convnn", k=3, candidates=POSITIONS)
    assert "ConvNN2d k=3, cosine, 5 positions" in str(conversion_report(model))


@pytest.mark.parametrize("name", NAMES)
def test_positions_without_values_are_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(ConvNNError, match=r"candidates: .* values.* meta device; .*device=.cpu"):
        KINDS[name](candidates=torch.arange(9))


# ------------------------------------------------------------------------------------------------ recomputation
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("generator", [None, 5])
def test_checkpointing_gives_the_gradient_of_the_draw(generator: Any, reentrant: bool) -> None:
    layer, x = ConvNN2d(4, 4, k=3, candidates=Random(6, generator)), MAP.clone().requires_grad_()
    gradients = []
    for run in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
        torch.manual_seed(1)
        x.grad = None
        run(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_generator_that_a_checkpoint_cannot_restore_is_refused(name: str, reentrant: bool) -> None:
    make, x = KINDS[name], example(name, 36 if "attention" in name else 6)
    layer = make(candidates=Random(6, generator=torch.Generator().manual_seed(0)))
    layer(x).sum().backward()  # without a checkpoint it is fine
    loss = checkpoint(layer, x.clone().requires_grad_(), use_reentrant=reentrant).sum()
    with pytest.raises(ConvNNError, match=r"Random\.generator: .*checkpointing.* or give a seed"):
        loss.backward()
