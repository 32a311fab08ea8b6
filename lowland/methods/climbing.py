"""What methods have in common that climb along a gradient of the same step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lowland import checks
from lowland.method import Method
from lowland.probe import Probe


@dataclass(frozen=True, kw_only=True)
class Climbing(Method):
    """A method whose perturbation follows a gradient of the same step, so that each rank may follow its own.

    It keeps no vector from step to step and decides nothing by a gradient: so ranks may differ within a step.

    Args:
        ascent_gradient: "mean" or "local". With "local" each rank carries out the whole step on its own gradients,
            and what the steps return is averaged once.
    """

    ascent_gradient: Literal["mean", "local"] = "mean"

    def __post_init__(self) -> None:
        checks.one_of("ascent_gradient", self.ascent_gradient, ("mean", "local"))
        super().__post_init__()

    @property
    def synchronized(self) -> bool:  # type: ignore[override]
        """Only with the mean over the ranks."""
        return self.ascent_gradient == "mean"

    def probe(self, batch: Any, **options: Any) -> Probe:
        """A probe whose gradient is averaged over the ranks, or with "local" is the rank's own.

        Args:
            batch: The examples.
            options: The other arguments of :class:`~lowland.probe.Probe`.
        """
        return Probe(batch, sync=self.ascent_gradient == "mean", **options)
