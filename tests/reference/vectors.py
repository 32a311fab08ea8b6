"""Arithmetic on lists of arrays, read as one long vector."""

from __future__ import annotations

import math

import numpy as np

TINY = 1e-12

Weights = list[np.ndarray]


def zeros(w: Weights) -> Weights:
    return [np.zeros_like(x) for x in w]


def copy(w: Weights) -> Weights:
    return [np.array(x, dtype=np.float64) for x in w]


def add(u: Weights, v: Weights, scale: float = 1.0) -> Weights:
    """`u + scale * v`."""
    return [a + scale * b for a, b in zip(u, v, strict=True)]


def scale(v: Weights, factor: float) -> Weights:
    return [factor * x for x in v]


def dot(u: Weights, v: Weights) -> float:
    return float(sum(np.sum(a * b) for a, b in zip(u, v, strict=True)))


def norm(v: Weights) -> float:
    return math.sqrt(dot(v, v))


def lerp(u: Weights, v: Weights, lam: float) -> Weights:
    """`(1 - lam) * u + lam * v`."""
    return [(1.0 - lam) * a + lam * b for a, b in zip(u, v, strict=True)]
