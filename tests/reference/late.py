"""Zhou, Wang, Mao, Li, Yan, "Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training"."""

from __future__ import annotations

from reference.model import Batch
from reference.sam import SAM
from reference.vectors import Weights
from reference.wrapper import Inner, Wrapper


class Late(Wrapper):
    """The schedule of the paper (arXiv 2410.10373): the base optimizer first, from step `start` on the inner method."""

    def setup(self, start: int = 0, inner: Inner = (SAM, {})) -> None:
        self.first, self.t = start, 0
        self.inner = self.start(inner)

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        self.t += 1
        if self.t <= self.first:
            return self.loss(batch), self.gradient(batch)
        return self.ask(self.inner, batch)
