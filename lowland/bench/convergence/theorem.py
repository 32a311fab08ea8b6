"""What is proved of plain gradient descent, SAM and SAMPa-0 with a fixed radius on a convex, L-smooth loss.

All three theorems say the same of a function V of the state, for exact gradients, one constant step eta, and neither
momentum nor weight decay::

    V_{t+1} <= V_t - eta (1 - eta L / 2) ||g(x_t)||^2 + eta^2 rho^2 C

and so, by adding up T steps from V_1, with V >= f*::

    1/T sum_t ||g(x_t)||^2 <= (V_1 - f*) / (T eta (1 - eta L / 2)) + eta rho^2 C / (1 - eta L / 2)

V, C and the condition on eta differ. SAMPa's V is that of Xie, Pethick, Cevher (NeurIPS 2024, arXiv 2410.10683), as
summaries give it; their constants were not available. So the constants here are derived here, and the tests check them.

Write g = g(x_t), q = g(y_t), s = g(x~_t), where x~_t - x_t has length rho, so ||s - g|| <= L rho. By the descent
lemma and x_{t+1} = x_t - eta s::

    f(x_{t+1}) <= f(x_t) - eta (1 - eta L / 2) ||g||^2 - eta (1 - eta L) <g, s - g> + eta^2 L / 2 ||s - g||^2     (*)

**Plain**: s = g. V = f, C = 0, eta < 2 / L.

**SAM**: x~_t - x_t is parallel to g, and gradients of convex functions are monotone, so <g, s - g> >= 0, and with
eta <= 1 / L the third term is not positive. V = f, C = L^3 / 2.

**SAMPa-0**: x~_t - x_t is parallel to q, so <q, s - g> >= 0, and the third term is at most
eta (1 - eta L) <q - g, s - g>, which equals::

    (1 - eta L) / 2 (||q - g||^2 + eta^2 ||s - g||^2 - ||(q - g) - eta (s - g)||^2)

The first square makes V_t = f(x_t) + (1 - eta L) / 2 ||g(x_t) - g(y_t)||^2. The second is at most eta^2 L^2 rho^2. The
third pays for V_{t+1}: x_{t+1} - y_{t+1} = eta (q - s), so ||g(x_{t+1}) - g(y_{t+1})||^2 <= eta^2 L^2 ||q - s||^2, and
for c = eta L and every pair of vectors, c^2 ||a - b||^2 <= ||a||^2 + c^2 / (1 - c^2) ||b||^2. With
a = (q - g) - eta (s - g), b = (1 - eta) (s - g) and eta < 1 the last term is at most eta^2 rho^2 L^4 / (1 - c^2).
Together C = (L^2 + L^3 + L^4 / (1 - c^2)) / 2, for eta < min(1, 1 / L).

With lam > 0, with other perturbations and with mini-batches nothing is claimed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["plain", "sam", "sampa"]
SLACK = 1e-12  # rounding of V, relative to max(1, |V|)


def limit(kind: Kind, smoothness: float) -> float:
    """The least step for which the theorem says nothing: 2 / L for plain, 1 / L for SAM, min(1, 1 / L) for SAMPa-0."""
    return {"plain": 2 / smoothness, "sam": 1 / smoothness, "sampa": min(1.0, 1 / smoothness)}[kind]


def holds(kind: Kind, smoothness: float, lr: float) -> bool:
    """Whether the condition on the step holds; at the limit itself it does not."""
    return 0 < lr < limit(kind, smoothness)


@dataclass(frozen=True)
class Guarantee:
    """A theorem with its numbers.

    Args:
        kind: Whose theorem.
        smoothness: L.
        lr: The step eta; it must be below :func:`limit`.
        rho: The radius.
    """

    kind: Kind
    smoothness: float
    lr: float
    rho: float

    @property
    def coefficient(self) -> float:
        """C, see the module."""
        L = self.smoothness
        if self.kind == "plain":
            return 0.0
        if self.kind == "sam":
            return L**3 / 2
        return (L**2 + L**3 + L**4 / (1 - (self.lr * L) ** 2)) / 2

    @property
    def decrease(self) -> float:
        """The factor of ``||g(x_t)||^2``: ``eta (1 - eta L / 2)``."""
        return self.lr * (1 - self.lr * self.smoothness / 2)

    @property
    def rise(self) -> float:
        """The most by which V rises in a step: ``eta^2 rho^2 C``."""
        return self.lr**2 * self.rho**2 * self.coefficient

    def bound(self, gap: float, steps: int) -> float:
        """The bound of the mean of ``||g(x_t)||^2`` over ``steps`` steps, for ``gap = V_1 - f*``."""
        return gap / (steps * self.decrease) + self.rise / self.decrease

    def broken(self, values: Sequence[float], squares: Sequence[float]) -> int:
        """The number of steps that break the inequality; 0 if the theorem is right.

        Args:
            values: V_t, one more than steps.
            squares: ``||g(x_t)||^2``.
        """
        steps = zip(values, values[1:], squares, strict=False)
        return sum(not new <= old - self.decrease * g + self.rise + SLACK * max(1.0, abs(old)) for old, new, g in steps)

    def step_for(self, gap: float, steps: int) -> float:
        """The step that minimizes the bound over steps up to ``lr``, with the coefficient at ``lr``, nearly.

        It minimizes ``gap / (T eta) + eta rho^2 C``, so that the bound falls as ``1 / T + rho / sqrt(T)``.
        """
        floor = steps * self.rho**2 * self.coefficient
        return self.lr if floor == 0 else min(self.lr, (gap / floor) ** 0.5)
