"""One method at some steps, another at the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core.errors import ArgumentError
from lowland.core.probe import Plan
from lowland.core.schedule import When, every
from lowland.core.vec import Vec
from lowland.methods.base import Method, Wrapper
from lowland.methods.plain import Plain
from lowland.methods.sam import SAM

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Switch(Wrapper):
    """One method at the steps where ``when`` holds, another at the others; each keeps its own memory.

    ::

        Switch(when=every(5), inner=SAM())                                  # SAM every fifth step
        Switch(when=after(0.5), inner=SAMPa(), otherwise=SAM())                # from one method to another

    Args:
        when: The steps of ``inner``: ``schedule.every(k)``, ``schedule.after(start)``, or a ``schedule.When`` of
            one's own.
        inner: The method at those steps.
        otherwise: The method at the others.

    Cost: Each step costs what its method costs, in gradients and all-reduces; the memory of both.

    Invariants: ``every(1)`` is the inner method, and so is ``after(0)``. Each method counts its own steps in its own
    memory; ``Late`` and radii that change see the engine's steps and progress, whichever method took them.

    Use: To try a schedule of methods.

    Avoid: To make SAM cheaper: the steps in between use nothing of SAM's gradient, of which ``LookSAM`` reuses a
    part.
    """

    when: When = every(5)  # noqa: RUF009 - frozen, so it can be shared
    inner: Method = SAM()  # noqa: RUF009 - frozen, so it can be shared
    otherwise: Method = Plain()  # noqa: RUF009 - frozen, so it can be shared

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        super().check()
        if not isinstance(self.when, When):
            raise ArgumentError(f"when must be a schedule.When, but is {self.when!r}; pass every(5) or after(1000)")
        if not isinstance(self.otherwise, Method):
            raise ArgumentError(f"otherwise must be a Method, but is {self.otherwise!r}; pass a value such as Plain()")

    @property
    def needs_batch(self) -> bool:  # type: ignore[override]
        """Where one of the two does."""
        return self.inner.needs_batch or self.otherwise.needs_batch

    @property
    def whole_gradient(self) -> bool:  # type: ignore[override]
        """Where both do."""
        return self.inner.whole_gradient and self.otherwise.whole_gradient

    @property
    def synchronized(self) -> bool:  # type: ignore[override]
        """Where both are."""
        return self.inner.synchronized and self.otherwise.synchronized

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {f"{name}.{k}": v for name, method in self._parts() for k, v in method.init(params).items()}

    def validate(self, engine: Engine) -> None:
        """See :meth:`lowland.methods.base.Method.validate`."""
        for _, method in self._parts():
            method.validate(engine)

    def fallback(self, memory: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.fallback`."""
        values = dict(memory)
        for name, method in self._parts():
            values |= {f"{name}.{k}": v for k, v in method.fallback(_own(memory, name)).items()}
        return values

    def reshard(self, shares: Sequence[dict[str, Any]], number: int, count: int) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.reshard`."""
        values: dict[str, Any] = {}
        for name, method in self._parts():
            own = method.reshard([_own(memory, name) for memory in shares], number, count)
            values |= {f"{name}.{k}": v for k, v in own.items()}
        return values

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        name, method = self._parts()[0 if engine.holds(self.when) else 1]
        with engine.scope(f"{name}."):
            return (yield from method.plan(engine, batch))

    def _parts(self) -> tuple[tuple[str, Method], tuple[str, Method]]:
        return ("inner", self.inner), ("otherwise", self.otherwise)


def _own(memory: dict[str, Any], name: str) -> dict[str, Any]:
    """The entries of memory that belong to one of the two methods, under the method's own keys."""
    return {k.removeprefix(f"{name}."): v for k, v in memory.items() if k.startswith(f"{name}.")}
