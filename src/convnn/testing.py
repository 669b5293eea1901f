"""Help for tests and benchmarks: inputs without ties, outputs with gradients, comparison by dtype, covering sets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_ATTEMPTS = 2000


def separated_tokens(
    batch: int,
    tokens: int,
    channels: int,
    *,
    queries: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    gap: float = 1e-4,
) -> Tensor:
    """Draw tokens without ties, so that rounding cannot change the selection.

    Any two tokens differ in their similarity to every query, whether it is a cosine, an inner product or a distance,
    by at least ``gap`` of the range of that query's similarities.

    Args:
        batch: B.
        tokens: N.
        channels: C.
        queries: ``(B, M, C)``; the tokens themselves if left out.
        dtype: of the result; the separation is that of the rounded values.
        seed: of the draw.
        gap: the smallest relative difference.

    Returns:
        ``(B, N, C)``.

    Raises:
        ValueError: so many tokens cannot be that far apart.

    Example:
        >>> separated_tokens(2, 10, 4).shape
        torch.Size([2, 10, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    samples: list[Tensor] = []
    for _ in range(_ATTEMPTS):
        if len(samples) == batch:
            break
        drawn = torch.randn(tokens, channels, generator=generator, dtype=torch.float64).to(dtype)
        asking = drawn if queries is None else queries[len(samples)]
        if _smallest_gap(asking.double(), drawn.double()) >= gap:
            samples.append(drawn)
    if len(samples) < batch:
        raise ValueError(f"gap: {tokens} tokens were never {gap} apart in {_ATTEMPTS} draws; lower gap or tokens")
    return torch.stack(samples) if samples else torch.empty(0, tokens, channels, dtype=dtype)


def _smallest_gap(query: Tensor, key: Tensor) -> float:
    """Return the smallest difference of two similarities of one query, as a part of the range of them all."""
    dot = query @ key.T
    scores = torch.stack([dot, dot / key.norm(dim=-1), torch.cdist(query, key)]).sort(-1).values
    spread = (scores[..., -1:] - scores[..., :1]).clamp(min=torch.finfo(scores.dtype).tiny)
    gaps = scores.diff(dim=-1) / spread
    return float(gaps.min()) if gaps.numel() else 1.0


def tolerance(dtype: torch.dtype) -> float:
    """Return how large a relative error may be: a few dozen roundings, or a few of a half-precision type.

    >>> tolerance(torch.float32) < 1e-5 and tolerance(torch.float64) < 1e-10
    True
    """
    eps = torch.finfo(dtype).eps
    return eps * (80 if eps < 1e-6 else 8)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a part of the largest expected magnitude; infinite if shapes or nans differ.

    >>> relative_error(torch.tensor([1.0, 9.0]), torch.tensor([1.0, 10.0]))
    0.1
    """
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.detach().double(), expected.detach().double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    difference = (actual - expected).abs().masked_fill(same, 0).nan_to_num(nan=float("inf"), posinf=float("inf"))
    largest = float(difference.max()) if difference.numel() else 0.0
    finite = expected[expected.isfinite()].abs()
    size = float(finite.max()) if finite.numel() else 0.0
    return largest if largest == 0 else largest / size if size else float("inf")


def assert_close(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, limit: float | None = None, case: object = ""
) -> None:
    """Compare named tensors by their relative errors, and name every one that is off.

    Args:
        actual: what to judge.
        expected: the truth, under the same names.
        limit: the largest relative error; ``tolerance`` of each actual tensor's dtype if left out.
        case: what to show when they differ.

    Raises:
        AssertionError: names differ, or an error is above the limit.
    """
    if actual.keys() != expected.keys():
        raise AssertionError(f"{case} names differ: {sorted(actual)} and {sorted(expected)}")
    wrong = []
    for name, tensor in actual.items():
        allowed = tolerance(tensor.dtype) if limit is None else limit
        error = relative_error(tensor, expected[name])
        if not error <= allowed:
            wrong.append(f"{name} {tuple(tensor.shape)}: relative error {error:.2e} above {allowed:.2e}")
    if wrong:
        raise AssertionError("\n".join([str(case), *wrong]))


def with_gradients(output: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name an output and its gradients with respect to the inputs, for one fixed cotangent without symmetries.

    >>> x = torch.ones(2, requires_grad=True)
    >>> sorted(with_gradients(2 * x, {"x": x}))
    ['gradient of x', 'output']
    """
    steps = torch.arange(output.numel(), dtype=torch.float64, device=output.device)
    # Its mean is not 0: a gradient that is a sum of it must not cancel to nothing but rounding errors.
    cotangent = (1 + torch.cos(1.7 * steps + 0.3)).to(output.dtype).view(output.shape)
    gradients = torch.autograd.grad(output, list(inputs.values()), cotangent, allow_unused=True, materialize_grads=True)
    named = {f"gradient of {name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}
    return {"output": output.detach(), **named}


def layer_with_gradients(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return a layer's output and its gradients with respect to the input and every parameter."""
    x = x.detach().requires_grad_()
    return with_gradients(layer(x), {"input": x, **dict(layer.named_parameters())})


def function_with_gradients(function: Callable[..., Tensor], **tensors: Tensor | None) -> dict[str, Tensor]:
    """Call a function with tensors by name, and return its output and the gradient of each (None is passed on)."""
    leaves = {name: None if tensor is None else tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    inputs = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    return with_gradients(function(**leaves), inputs)


def covering_set(
    options: Mapping[str, Sequence[Any]], *, allowed: Callable[[dict[str, Any]], bool] | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Choose few cases of a product such that every pair of values of any two options appears in one of them.

    Args:
        options: the values of every option.
        allowed: whether a case exists; pairs that no allowed case is found for are left out.
        seed: of the search.

    Returns:
        Cases, each a value for every option.

    Example:
        >>> len(covering_set({"a": range(3), "b": range(3), "c": range(2)})) < 3 * 3 * 2
        True
    """
    rng = random.Random(seed)
    counts = {name: range(len(values)) for name, values in options.items()}
    open_pairs = {((a, i), (b, j)) for a, b in itertools.combinations(options, 2) for i in counts[a] for j in counts[b]}
    cases = []
    while open_pairs:
        pair = min(open_pairs, key=str)
        drawn = [{**{name: rng.choice(count) for name, count in counts.items()}, **dict(pair)} for _ in range(200)]
        real = [row for row in drawn if allowed is None or allowed(_values(options, row))]
        best = max(real, key=lambda row: len(open_pairs & _pairs(row)), default=None)
        open_pairs.discard(pair)
        if best is not None:
            open_pairs -= _pairs(best)
            cases.append(_values(options, best))
    return cases


def _values(options: Mapping[str, Sequence[Any]], row: Mapping[str, int]) -> dict[str, Any]:
    return {name: values[row[name]] for name, values in options.items()}


def _pairs(row: Mapping[str, int]) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    return set(itertools.combinations(row.items(), 2))
