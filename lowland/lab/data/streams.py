"""Independent random streams from one seed: what is drawn for one purpose never shifts another."""

from __future__ import annotations

import hashlib

import torch


def derived(seed: int, *key: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and every part of ``key``.

    Two purposes with the same seed must not share numbers: with plain ``manual_seed(0)`` for both, the
    examples that label noise picks would be the very ones an epoch shows first.
    """
    text = ":".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *key: str | int) -> torch.Generator:
    """A CPU generator for one purpose, such as ``stream(seed, "order", epoch)``."""
    return torch.Generator().manual_seed(derived(seed, *key))
