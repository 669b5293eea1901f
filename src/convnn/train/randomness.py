"""Random states made of a run's seed and the place in the run: nothing depends on where a run was interrupted."""

from __future__ import annotations

import random

import torch

AUGMENTING, COMPUTING = 0, 1
"""Streams of one step: what draws while a batch is prepared, and what draws while it is computed."""


def mixed_seed(seed: int, epoch: int) -> int:
    """Return one 32-bit seed for an epoch of a run; neighbouring runs and epochs get unrelated ones."""
    return (seed * 0x9E3779B1 + epoch * 0x85EBCA6B + 0x27D4EB2F) & 0xFFFFFFFF


def seed_epoch(seed: int, epoch: int) -> None:
    """Set the random states of Python, numpy and torch from a seed and an epoch."""
    _set(mixed_seed(seed, epoch))


def seed_step(seed: int, epoch: int, step: int, *, stream: int = AUGMENTING) -> None:
    """Set the random states of Python, numpy and torch from a seed, an epoch, a step of it and a stream of this step.

    >>> seed_step(0, 1, 2)
    >>> first = torch.rand(1)
    >>> seed_step(0, 1, 2, stream=COMPUTING)
    >>> second = torch.rand(1)
    >>> seed_step(0, 1, 2)
    >>> torch.equal(first, torch.rand(1)), torch.equal(first, second)
    (True, False)
    """
    mixed = mixed_seed(seed, epoch) ^ ((2 * step + stream) * 0xC2B2AE35 & 0xFFFFFFFF)
    mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    _set(mixed ^ (mixed >> 16))


def _set(mixed: int) -> None:
    import numpy

    random.seed(mixed)
    numpy.random.seed(mixed)  # noqa: NPY002 - the legacy state is what augmentations draw from
    torch.manual_seed(mixed)
