"""A small part of the random cases; ``make fuzz`` runs 100,000."""

from __future__ import annotations

import pytest

from convnn import native

from .fuzz import OPERATORS, run

pytestmark = pytest.mark.skipif(native.why_not() is not None, reason=f"needs the native library: {native.why_not()}")


def test_random_cases() -> None:
    assert {run(number) for number in range(400)} == {operator.__name__ for operator in OPERATORS}
