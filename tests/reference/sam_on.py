"""Mueller, Vlaar, Rolnick, Hein, "Normalization Layers Are All That Sharpness-Aware Minimization Needs" (SAM-ON)."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights


class SAMON(Twin):
    """The rule of the paper (NeurIPS 2023, arXiv 2306.04226): SAM whose perturbation moves normalization layers only.

    The problem says which tensors are theirs; the norm in the ascent runs over those alone.
    """

    def setup(self) -> None:
        rhos = self.rho if isinstance(self.rho, list) else [self.rho] * len(self.w)
        self.rho = [rho * chosen for rho, chosen in zip(rhos, self.problem.normalizes, strict=True)]

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        e = self.ascent(self.gradient(batch))
        return self.loss(batch), self.gradient(batch, at=e)
