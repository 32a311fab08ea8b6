"""Random times of devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from lowland.core import checks
from lowland.core.errors import ArgumentError, MissingExtraError

try:
    import numpy as np
    from scipy.special import log_ndtr
except ImportError:
    raise MissingExtraError("scipy", "lab") from None

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How the times of passes differ between devices and steps.

    In each step, each device multiplies the times of its passes by a number of its own, log-normal with mean 1::

        exp(sigma z - sigma^2 / 2),  z normal

    Args:
        sigma: The standard deviation of the number's logarithm, >= 0; 0.05 is about 5 %.
        slow: How many times longer passes take on the first device, >= 1.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    sigma: float = 0.0
    slow: float = 1.0

    def __post_init__(self) -> None:
        checks.at_least("sigma", self.sigma, 0, "0 makes all steps alike")
        if not 1 <= self.slow < float("inf"):
            raise ArgumentError(f"slow must be a number >= 1, but is {self.slow!r}; 1 makes all devices alike")

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """The factors of all devices in one step, shape ``shape``; the first entry is the slow device's."""
        drawn = rng.standard_normal(shape) if self.sigma else np.zeros(shape)
        factors: Array = np.exp(self.sigma * drawn - self.sigma**2 / 2)
        factors.flat[0] *= self.slow
        return factors


def expected_slowest(sigma: float, devices: int) -> float:
    """The expected largest of the factors of so many devices, none of which is slow.

    The largest of n normal numbers has the density ``n phi(z) Phi(z)^(n - 1)``, so it is the integral of this times
    ``exp(sigma z - sigma^2 / 2)``.

    Args:
        sigma: As in :class:`Noise`.
        devices: n, >= 1.

    Example:
        >>> expected_slowest(0.1, 1), round(expected_slowest(0.1, 10_000), 3)
        (1.0, 1.463)
    """
    z = np.linspace(-14.0, 16.0, 6001) + sigma  # the trapezoidal rule, exact to rounding for such functions
    logs = np.log(devices / np.sqrt(2 * np.pi)) - z**2 / 2 + (devices - 1) * log_ndtr(z) + sigma * z - sigma**2 / 2
    return round(float(np.sum(np.exp(logs)) * (z[1] - z[0])), 12)
