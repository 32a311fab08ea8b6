"""A method for the last part of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core import schedule
from lowland.core.errors import ArgumentError
from lowland.core.probe import Plan
from lowland.core.vec import Vec
from lowland.methods.base import Method, Wrapper
from lowland.methods.plain import Plain
from lowland.methods.sam import SAM

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Late(Wrapper):
    """Late-phase SAM: plain training at first, SAM or another method at the end.

    ``d = g(w)`` before ``start``; the inner method's direction from then on.

    Args:
        inner: The method of the last part; it has the radius: ``Late(inner=SAM(rho=0.1), start=0.9)``.
        start: An integer is a step, counted from 0; a number in (0, 1) is a fraction of the training. It must be given
            before training.
        total: The number of steps of the training, >= 1, if ``start`` is a fraction of it; None takes the fraction from
            ``engine.progress``.

    Cost: 1 gradient per step before the start, the inner method's after it: with SAM, 1 + the fraction of the training
    after the start; the inner method's memory and all-reduces.

    Differs: The released script starts the last part with a new optimizer; here the base optimizer keeps its momentum.
    Steps are calls of ``backward``, so with accumulation they are micro-steps.

    Invariants: start = 0 is the inner method, and a start beyond the end is the base optimizer. The inner method counts
    its own steps: ``Late(inner=LookSAM())`` starts with a SAM step. Fractions in the inner method are fractions of the
    whole training, not of the last part.

    Use: To get most of SAM's flatness for little more than the cost of plain training.

    Avoid: If the early phase matters, for example with much label noise, which plain training has memorized before
    the start.

    Reference: Zhou, Wang, Mao, Li, Yan: Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in
    Training. ICLR 2025, arXiv 2410.10373.
    """

    inner: Method = SAM()  # noqa: RUF009 - frozen, so it can be shared
    start: float | None = None
    total: int | None = None

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        super().check()
        if self.start is not None:
            schedule.after(self.start, self.total)

    @property
    def needs_progress(self) -> bool:
        """See :meth:`lowland.methods.base.Method.needs_progress`."""
        return super().needs_progress or (self.start is not None and self._late().needs_progress)

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        if self.start is None:
            raise ArgumentError(
                "start must be given before training, but is None; give the first step of the late part, or a fraction "
                "such as Late(inner=SAM(), start=0.9)"
            )
        return super().init(params)

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        late = engine.holds(self._late())
        return (yield from (self.inner if late else Plain()).plan(engine, batch))

    def _late(self) -> schedule.After:
        assert self.start is not None  # init refuses it
        return schedule.after(self.start, self.total)
