"""Independent random streams from one seed: draws for one purpose do not change the draws for another."""

from __future__ import annotations

import hashlib

import torch


def derived(seed: int, *key: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and every part of ``key``.

    Two purposes must not draw the same numbers. With ``manual_seed(0)`` for both, label noise would replace the labels
    of exactly the examples that come first in an epoch.
    """
    text = ":".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *key: str | int) -> torch.Generator:
    """A seeded CPU generator for one purpose, such as ``stream(seed, "order", epoch)``."""
    return torch.Generator().manual_seed(derived(seed, *key))
