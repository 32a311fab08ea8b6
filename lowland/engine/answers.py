"""What plans ask of an engine beside readings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lowland.core.errors import UsageError
from lowland.core.geometry import Geometry, Radii
from lowland.core.lagged import Lagged, read
from lowland.core.schedule import Schedule, When
from lowland.core.vec import Vec
from lowland.engine import lookahead
from lowland.engine.parameters import Parameters
from lowland.engine.progress import Progress
from lowland.executors.base import Work
from lowland.executors.mesh import collectives


class Answers:
    """The part of :class:`lowland.Engine` that plans use."""

    step: int
    memory: dict[str, Any]
    optimizers: list[Optimizer]
    params: Vec
    parameters: Parameters
    work: Work
    lagged: Lagged
    training: Progress
    ranks: list[Any]
    under_way: bool
    _prefix: str = ""  # of the names of lagged values, while a method inside another plans

    @property
    def progress(self) -> float:
        """How much of the training is done, in [0, 1]: as last set, else ``step / total_steps``.

        Raises:
            UsageError: It was never set, and there is no ``total_steps``.
        """
        return self.training.at(self.step)

    @progress.setter
    def progress(self, fraction: float) -> None:
        """Say how much of the training is done.

        Args:
            fraction: In [0, 1], the same on all ranks.

        Raises:
            UsageError: A step is under way.
            ArgumentError: The fraction is not in [0, 1].
        """
        if self.under_way:
            raise UsageError(
                "engine.progress must be set between steps, but a step is under way; set it before "
                "engine.backward(batch), or before the loop over engine.passes()"
            )
        self.training.give(fraction)

    def lookahead(self, grad: Vec, *, raw: bool = False, among: Sequence[bool] | None = None) -> Vec:
        """The base optimizer's next step for this gradient, not taken: a displacement from the weights.

        Args:
            grad: One tensor per parameter.
            raw: Leave out momentum, weight decay and preconditioning: ``-lr * grad``.
            among: Which parameters the gradient has reached; the others stay where they are, as the optimizer leaves
                them, and so do frozen ones.
        """
        ask = lookahead.raw if raw else lookahead.displacement
        return lookahead.each(ask, self.optimizers, self.params, grad, self.parameters.trained(among))

    def lookahead_later(
        self, grad: Vec, *, raw: bool = False, among: Sequence[bool] | None = None
    ) -> Vec | Callable[[], Vec]:
        """:meth:`lookahead` for one of several probes asked together: if arithmetic, left to whoever answers it."""
        later = partial(self.lookahead, grad, raw=raw, among=among)
        # A copy of the optimizer that takes a step may fail, or talk to all ranks, so all must let it.
        return later if raw or all(map(lookahead.closed, self.optimizers)) else later()

    def momentum(self) -> Vec:
        """The base optimizer's buffer: SGD's momentum, Adam's mean; zero where there is none yet."""
        return lookahead.each(lambda o, p, _: lookahead.momentum(o, p), self.optimizers, self.params, self.params)

    def selected(self, geometry: Geometry) -> list[bool]:
        """Which parameters a geometry accepts, whatever radius their groups give them."""
        return self.parameters.select(geometry)

    @property
    def reached(self) -> list[bool]:
        """Which parameters the passes of this step have reached so far."""
        return self.work.step.reached

    @property
    def trained(self) -> list[bool]:
        """Which parameters are trained in this step: all but those frozen since the engine was made."""
        return self.parameters.trained(None) or [True] * len(self.params)

    def later(self, name: str, tensor: Tensor) -> Any:
        """Send device scalars to the host; get those sent under ``name`` the last time, None the first time.

        Raises:
            UsageError: The value to send is not a tensor.
        """
        _check_sent("later", tensor)
        return self.lagged.swap(self._prefix + name, tensor)

    def now(self, tensor: Tensor) -> Any:
        """A small tensor's values, the first rank's on several, where all must call it; the host waits for them.

        Raises:
            UsageError: It is no tensor.
        """
        _check_sent("now", tensor)
        return read(collectives.first(tensor, self.ranks))

    @contextmanager
    def scope(self, prefix: str) -> Iterator[None]:
        """For a plan inside another: ``memory`` is the entries whose keys begin with ``prefix``, without the prefix.

        At the end, what the inner plan has left in ``memory`` replaces those entries. Lagged values have the prefix in
        their names, too.
        """
        memory, names = self.memory, self._prefix
        self.memory = {k.removeprefix(prefix): v for k, v in memory.items() if k.startswith(prefix)}
        self._prefix = names + prefix
        try:
            yield
        finally:
            for key in [k for k in memory if k.startswith(prefix)]:
                del memory[key]
            memory.update({prefix + k: v for k, v in self.memory.items()})
            self.memory, self._prefix = memory, names

    def radii(self, rho: float | Schedule, geometry: Geometry) -> Radii:
        """The radius for every parameter: a number where all share it, else one each, 0 for excluded ones."""
        if isinstance(rho, Schedule):
            lr = self.optimizers[0].param_groups[0]["lr"]
            rho = rho.at(self.step, lr, self.progress) if rho.needs_progress else rho.at(self.step, lr)
        return self.parameters.radii(rho, geometry)

    def holds(self, when: When) -> bool:
        """Whether this step is one of those that are meant."""
        return when.holds(self.step, self.progress) if when.needs_progress else when.holds(self.step)


def _check_sent(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise UsageError(
            f"engine.{name} must be given a tensor of few entries, but was given a {type(value).__name__}; send a "
            "scalar such as vec.norm(here.grad); what the host knows already needs no sending"
        )
