"""Suppression of other libraries' notes that a user of convnn cannot act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


def quiet_lightning() -> AbstractContextManager[None]:
    """Keep Lightning's notes on devices, workers and logging steps out of the terminal; its errors still show."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")
    return _quiet(names, logging.ERROR, warnings_of=r"lightning\..*")


def quiet_exporters() -> AbstractContextManager[None]:
    """Keep the notes of PyTorch's and ONNX's exporters out of the terminal; errors still raise."""
    return _quiet(("torch.export", "torch.onnx", "onnxscript", "onnx_ir"), logging.CRITICAL)


@contextmanager
def _quiet(names: tuple[str, ...], level: int, *, warnings_of: str = "") -> Iterator[None]:
    """Raise the level of loggers, and ignore the warnings of modules that match a pattern (by default of all)."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=warnings_of)
            yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
