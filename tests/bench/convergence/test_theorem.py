"""The theorems, against SAM and SAMPa in plain NumPy on random convex losses from random states."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lowland.bench.convergence.theorem import Guarantee, Kind, holds, limit

Loss = tuple[int, float, Callable[[Any], float], Callable[[Any], Any]]  # dimension, L, f with f >= 0, its gradient
STEPS = 60


def losses(rng: np.random.Generator) -> Iterator[Loss]:
    for curvatures in ([1.0], [0.5, 2.0], [0.01, 0.1, 1.0, 5.0]):
        h = np.array(curvatures)
        yield len(h), h.max(), lambda w, h=h: float(h @ w**2 / 2), lambda w, h=h: h * w
    for scale in (0.5, 2.0):
        a = scale * rng.normal(size=(20, 3))
        L = np.linalg.eigvalsh(a.T @ a)[-1] / 80
        yield (
            3,
            L,
            lambda w, a=a: float(np.logaddexp(0, -a @ w).mean()),
            lambda w, a=a: -a.T @ (1 / (1 + np.exp(a @ w))) / len(a),
        )


def unit(v: Any) -> Any:
    size = np.linalg.norm(v)
    return v / size if size else v


def trajectory(kind: Kind, loss: Loss, lr: float, rho: float, rng: np.random.Generator, lam: float = 0.0) -> Any:
    """V and the squared gradient norms of a method that starts at a random x, and SAMPa at a random y."""
    d, L, f, g = loss
    x, y = rng.normal(size=d), rng.normal(size=d)
    values, squares = [], []
    for _ in range(STEPS + 1):
        q = g(y) if kind == "sampa" else g(x)
        values.append(f(x) + (1 - lr * L) / 2 * float(((g(x) - q) ** 2).sum()))
        squares.append(float((g(x) ** 2).sum()))
        s = g(x) if kind == "plain" else g(x + rho * unit(q))
        y = x - lr * q
        x = x - lr * ((1 - lam) * s + lam * g(y))
    return values, squares[:-1]


def cases(kind: Kind, rng: np.random.Generator) -> Iterator[tuple[Loss, Guarantee]]:
    for loss, share, rho in itertools.product(losses(rng), (0.1, 0.5, 0.9), (0.01, 0.1, 1.0)):
        yield loss, Guarantee(kind, loss[1], share * limit(kind, loss[1]), rho)


@pytest.mark.parametrize("kind", ["plain", "sam", "sampa"])
def test_no_step_breaks_the_inequality_and_the_bound_holds(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    for loss, guarantee in cases(kind, rng):
        values, squares = trajectory(kind, loss, guarantee.lr, guarantee.rho, rng)
        assert len(squares) == STEPS
        assert guarantee.broken(values, squares) == 0
        assert np.mean(squares) <= guarantee.bound(values[0], STEPS)  # the minima are at least 0


def test_the_inequality_can_fail() -> None:
    """It is violated for lam > 0, for which nothing is claimed, and with a smaller constant for SAM."""
    rng = np.random.default_rng(0)
    broken = 0
    for loss, guarantee in cases("sampa", rng):
        values, squares = trajectory("sampa", loss, guarantee.lr, guarantee.rho, rng, lam=0.9)
        broken += guarantee.broken(values, squares)
    assert broken > 0
    smaller = 0
    for loss, guarantee in cases("sam", rng):
        values, squares = trajectory("sam", loss, guarantee.lr, guarantee.rho, rng)
        smaller += Guarantee("plain", loss[1], guarantee.lr, guarantee.rho).broken(values, squares)
    assert smaller > 0


def test_the_numbers_by_hand() -> None:
    sampa, sam, plain = (Guarantee(kind, 2.0, 0.25, 0.1) for kind in ("sampa", "sam", "plain"))
    assert sampa.coefficient == pytest.approx((4 + 8 + 16 / 0.75) / 2, rel=1e-15)
    assert (sam.coefficient, plain.coefficient) == (4.0, 0.0)
    assert sampa.decrease == pytest.approx(0.1875)
    assert sam.rise == pytest.approx(0.0625 * 0.01 * 4)
    assert sam.bound(3.0, 8) == pytest.approx(3 / (8 * 0.1875) + 0.0025 / 0.1875)
    assert plain.broken([1.0, 0.9, 0.9], [0.5, 0.5]) == 1  # 0.1 > 0.1875 * 0.5 = 0.09375, and 0 < 0.09375
    assert plain.broken([1.0, float("nan")], [0.0]) == 1


def test_conditions() -> None:
    assert [limit(kind, 4.0) for kind in ("plain", "sam", "sampa")] == [0.5, 0.25, 0.25]
    assert [limit(kind, 0.5) for kind in ("plain", "sam", "sampa")] == [4.0, 2.0, 1.0]
    assert holds("sampa", 4.0, 0.2499)
    assert not holds("sampa", 4.0, 0.25)
    assert holds("plain", 4.0, 0.25)


def test_the_step_for_a_length_minimizes_the_bound() -> None:
    guarantee = Guarantee("sam", 1.0, 0.9, 0.5)  # C does not depend on the step
    gap, steps = 0.2, 400
    best = guarantee.step_for(gap, steps)
    assert best < 0.9

    def nearly(lr: float) -> float:
        return gap / (steps * lr) + lr * 0.25 * 0.5

    assert nearly(best) == pytest.approx(min(nearly(lr) for lr in np.linspace(0.01, 0.9, 5000)), rel=1e-6)
    assert guarantee.step_for(1e9, steps) == 0.9
    assert Guarantee("plain", 1.0, 0.9, 0.5).step_for(gap, steps) == 0.9
