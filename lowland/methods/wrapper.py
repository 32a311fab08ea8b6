"""What methods around other methods have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lowland.errors import ArgumentError
from lowland.geometry import L2, Geometry
from lowland.method import Method
from lowland.schedule import Schedule
from lowland.vec import Vec

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Wrapper(Method):
    """A method around another one, whose memory and needs are its own; it has no radius and no geometry itself.

    Args:
        inner: The method inside.
    """

    # Not arguments: the inner method has them.
    rho: float | Schedule = field(default=0.0, init=False, repr=False)
    geometry: Geometry = field(default=L2(), init=False, repr=False)
    inner: Method

    def check(self) -> None:
        """Refuse what is no method; subclasses call it before their own checks."""
        if not isinstance(self.inner, Method):
            raise ArgumentError(f"inner must be a Method, but is {self.inner!r}; pass a value such as SAM(rho=0.05)")

    @property
    def needs_batch(self) -> bool:  # type: ignore[override]
        """As the inner method."""
        return self.inner.needs_batch

    @property
    def whole_gradient(self) -> bool:  # type: ignore[override]
        """As the inner method."""
        return self.inner.whole_gradient

    @property
    def synchronized(self) -> bool:  # type: ignore[override]
        """As the inner method."""
        return self.inner.synchronized

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.method.Method.init`."""
        return self.inner.init(params)

    def meet(self, engine: Engine) -> None:
        """See :meth:`lowland.method.Method.meet`."""
        self.inner.meet(engine)

    def reshard(self, shares: Sequence[dict[str, Any]], number: int, count: int) -> dict[str, Any]:
        """See :meth:`lowland.method.Method.reshard`."""
        return self.inner.reshard(shares, number, count)

    def fallback(self, memory: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`lowland.method.Method.fallback`."""
        return self.inner.fallback(memory)
