"""What every test starts from."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest
import torch

from .slow import slow_ones


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seed torch's global generator, so that a test that fails does so again, alone or among others."""
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Count no lines in tests marked no_cover: under pytest-xdist, pytest-cov pauses only one of its two tracers."""
    trace = sys.gettrace()
    if item.get_closest_marker("no_cover"):
        sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(trace)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow by the table of ``slow.py``, and run first what forks.

    A test of derivatives may start autograd's threads, and a process that is forked later cannot differentiate.
    """
    items.sort(key=lambda item: "tests/train/" not in item.nodeid)
    slow = slow_ones([item.nodeid for item in items])
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)
