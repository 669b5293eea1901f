"""The published table, counted once: five networks of ResNet-50's size."""

from __future__ import annotations

import pytest

from convnn.accounting import commands
from convnn.accounting.headline import HeadlineRow, headline


@pytest.fixture(scope="session")
def headline_rows() -> dict[str, HeadlineRow]:
    return {row.published.name: row for row in headline()}


@pytest.fixture
def _headline(headline_rows: dict[str, HeadlineRow], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command print the rows that were counted already."""
    monkeypatch.setattr(commands, "headline", lambda: list(headline_rows.values()))
