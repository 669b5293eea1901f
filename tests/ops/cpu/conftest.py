"""The kernels as on other processors."""

from __future__ import annotations

import pytest

from convnn.ops.cpu import product


@pytest.fixture(params=[False, True], ids=["short vectors", "wide vectors"])
def _processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let products go the way of either kind of processor: a test must see the same results on any machine."""
    monkeypatch.setattr(product, "_WIDE_VECTORS", request.param)
