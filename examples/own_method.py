"""A method of your own in one file: `lowland compare --methods plain sam own_method.py:TwoRadii:ratio=0.25`."""

from dataclasses import dataclass

import lowland
from lowland import checks, vec


@dataclass(frozen=True, kw_only=True)
class TwoRadii(lowland.Method):
    """SAM with two radii: ``d = (g(w + e) + g(w + ratio * e)) / 2`` with ``e = rho * g(w) / ||g(w)||``."""

    ratio: float = 0.5

    def check(self):
        checks.within("ratio", self.ratio, 0, 1, "1 is SAM")

    def plan(self, engine, batch):
        here = yield lowland.Probe(batch)
        far = self.ascent(engine, here.grad)
        # The two do not depend on each other, so they are asked together, and may be answered side by side.
        a, b = yield lowland.Probe(batch, at=far), lowland.Probe(batch, at=vec.scale(far, self.ratio))
        return here.loss, vec.lerp(a.grad, b.grad, 0.5)
