"""What every test starts from."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seed torch's global generator, so that a test that fails does so again, alone or among others."""
    torch.manual_seed(0)
