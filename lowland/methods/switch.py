"""One method at some steps, another at the others."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

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

    Use: To try a schedule of methods. Not to make SAM cheaper on the cheap: ``LookSAM`` reuses what it finds.
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
        found = dict(memory)
        for name, method in self._parts():
            own = {k.removeprefix(f"{name}."): v for k, v in memory.items() if k.startswith(f"{name}.")}
            found |= {f"{name}.{k}": v for k, v in method.fallback(own).items()}
        return found

    def reshard(self, shares: Sequence[dict[str, Any]], number: int, count: int) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.reshard`."""
        found: dict[str, Any] = {}
        for name, method in self._parts():
            own = [
                {k.removeprefix(f"{name}."): v for k, v in share.items() if k.startswith(f"{name}.")}
                for share in shares
            ]
            found |= {f"{name}.{k}": v for k, v in method.reshard(own, number, count).items()}
        return found

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        name, method = self._parts()[0 if engine.holds(self.when) else 1]
        return (yield from method.plan(cast("Engine", _Compartment(engine, f"{name}.")), batch))

    def _parts(self) -> tuple[tuple[str, Method], tuple[str, Method]]:
        return ("inner", self.inner), ("otherwise", self.otherwise)


class _Compartment:
    """The engine as one of the two methods sees it: memory and lagged values under names of its own."""

    def __init__(self, engine: Engine, prefix: str) -> None:
        self._engine, self._prefix = engine, prefix
        self.memory = _Prefixed(engine, prefix)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def later(self, name: str, tensor: Tensor) -> Any:
        return self._engine.later(self._prefix + name, tensor)


class _Prefixed(MutableMapping[str, Any]):
    """The part of an engine's memory whose keys begin with a prefix, without it."""

    def __init__(self, engine: Engine, prefix: str) -> None:
        self._engine, self._prefix = engine, prefix

    def __getitem__(self, key: str) -> Any:
        return self._engine.memory[self._prefix + key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._engine.memory[self._prefix + key] = value

    def __delitem__(self, key: str) -> None:
        del self._engine.memory[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (k.removeprefix(self._prefix) for k in self._engine.memory if k.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
