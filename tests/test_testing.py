"""The helpers of the tests must be able to say no."""

from __future__ import annotations

import itertools

import pytest
import torch

from convnn.testing import assert_close, covering_set, relative_error, separated_tokens, tolerance, with_gradients


def test_separated_tokens_are_apart_for_every_similarity():
    x = separated_tokens(3, 12, 4, gap=1e-3)
    unit = x / x.norm(dim=-1, keepdim=True)
    for scores in (x @ x.mT, unit @ unit.mT, torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")):
        ranked = scores.sort(-1).values
        assert (ranked.diff() > 0.9e-3 * (ranked[..., -1:] - ranked[..., :1])).all()
    assert torch.equal(x, separated_tokens(3, 12, 4, gap=1e-3))
    assert not torch.equal(x, separated_tokens(3, 12, 4, gap=1e-3, seed=1))


def test_separated_tokens_are_what_their_precision_can_hold():
    half = separated_tokens(1, 8, 4, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert separated_tokens(0, 8, 4).shape == (0, 8, 4)


def test_tokens_that_cannot_be_apart_are_refused():
    with pytest.raises(ValueError, match="lower gap or tokens"):
        separated_tokens(1, 12, 4, gap=0.5)


def test_tolerances_are_those_of_the_method():
    assert tolerance(torch.float64) < 1e-10
    assert tolerance(torch.float32) < 1e-5
    assert tolerance(torch.float16) < tolerance(torch.bfloat16) < 0.1


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, 2.0], 0.5),
        ([0.0, torch.nan], [0.0, torch.nan], 0.0),
        ([torch.inf, 1.0], [torch.inf, 1.0], 0.0),
        ([torch.inf, 1.0], [-torch.inf, 1.0], torch.inf),
        ([torch.nan, 1.0], [0.0, 1.0], torch.inf),
        ([0.0, 1.0], [torch.nan, 1.0], torch.inf),
        ([1e-30, 0.0], [0.0, 0.0], torch.inf),
        ([1.0], [1.0, 1.0], torch.inf),
        ([], [], 0.0),
    ],
)
def test_relative_errors(actual, expected, error):
    assert relative_error(torch.tensor(actual), torch.tensor(expected)) == error


def test_what_differs_is_named():
    one, two = {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2) + 1e-4}
    assert_close(one, one)
    assert_close(one, two, limit=1e-3)
    with pytest.raises(AssertionError, match=r"case 7\nb \(2,\): relative error 1.00e-04 above"):
        assert_close(one, two, case="case 7")
    with pytest.raises(AssertionError, match="names differ"):
        assert_close(one, {"a": torch.ones(2)})


def test_gradients_are_named_and_filled_in():
    x, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    named = with_gradients(x.square(), {"x": x, "unused": unused})
    assert set(named) == {"output", "gradient of x", "gradient of unused"}
    assert (named["gradient of unused"] == 0).all()
    assert named["gradient of x"].unique().numel() == 3


def test_a_covering_set_has_every_allowed_pair():
    options = {"a": range(4), "b": "xyz", "c": (True, False), "d": range(3)}

    def allowed(case: dict) -> bool:
        return not (case["c"] and case["d"] == 2)

    cases = covering_set(options, allowed=allowed)
    assert all(allowed(case) for case in cases)
    assert len(cases) < 30
    for (one, values), (other, others) in itertools.combinations(options.items(), 2):
        found = {(case[one], case[other]) for case in cases}
        impossible = {(True, 2)} if (one, other) == ("c", "d") else set()
        assert found == set(itertools.product(values, others)) - impossible
