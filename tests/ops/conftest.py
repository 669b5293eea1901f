"""The operators by their kernels, and without them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..operators import kernels


@pytest.fixture(params=["kernels", "no kernels"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels(request.param == "kernels"):
        yield request.param
