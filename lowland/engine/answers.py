"""The part of the engine that plans use besides readings: progress, lookahead, radii and values on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.core import vec
from lowland.core.errors import UsageError
from lowland.core.geometry import Geometry, Radii
from lowland.core.lagged import Lagged, read
from lowland.core.schedule import Schedule, When
from lowland.core.vec import Vec
from lowland.engine import inside, lookahead
from lowland.engine.parameters import Parameters
from lowland.engine.progress import Progress
from lowland.executors.base import Work
from lowland.executors.mesh import collectives


class Answers:
    """The part of :class:`lowland.Engine` that plans use."""

    step: int
    memory: dict[str, Any]
    optimizers: list[Optimizer]
    wrappers: list[str]
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
        """The completed fraction of the training, in [0, 1]: the value last set, else ``step / total_steps``.

        Raises:
            UsageError: It was never set, and there is no ``total_steps``.
        """
        return self.training.at(self.step)

    @progress.setter
    def progress(self, fraction: float) -> None:
        """Set the completed fraction of the training.

        Args:
            fraction: The fraction, in [0, 1], the same on all ranks.

        Raises:
            UsageError: A step is in progress.
            ArgumentError: The fraction is not in [0, 1].
        """
        if self.under_way:
            raise UsageError(
                "engine.progress must be set between steps, but a step is under way; set it before "
                "engine.backward(batch), or before the loop over engine.passes()"
            )
        self.training.set(fraction)

    def lookahead(self, grad: Vec, *, raw: bool = False, among: Sequence[bool] | None = None) -> Vec:
        """The displacement that the base optimizer's next step would make with this gradient, without the step.

        Args:
            grad: The gradient, one tensor per parameter.
            raw: Return ``-lr * grad``, without momentum, weight decay and preconditioning.
            among: Which parameters the gradient has reached; None for all. The displacement of the other parameters
                is zero, because the optimizer skips them; unless they have a ``.grad``, as after
                ``zero_grad(set_to_none=False)``, with which it moves them by momentum and weight decay. That of
                frozen parameters is zero.

        Raises:
            UsageError: An optimizer has hooks around its step, or is inside a wrapper with a step of its own.
        """
        reached = self.parameters.trained(among)
        if raw:
            return lookahead.each(lookahead.raw, self.optimizers, self.params, grad, reached)
        inside.check_step(self.optimizers, self.wrappers)
        if among is not None and not all(among):
            grad = vec.mask(grad, among)
            held = self.parameters.held(under_way=self.under_way)
            reached = self.parameters.trained([a or h for a, h in zip(among, held, strict=True)])
        return lookahead.each(lookahead.displacement, self.optimizers, self.params, grad, reached)

    def lookahead_later(
        self, grad: Vec, *, raw: bool = False, among: Sequence[bool] | None = None
    ) -> Vec | Callable[[], Vec]:
        """:meth:`lookahead` for one of several probes that are asked together.

        Returns:
            A function that computes the displacement on the rank that answers the probe, if a closed form is known;
            else the displacement.

        Raises:
            UsageError: See :meth:`lookahead`.
        """
        if not raw:
            inside.check_step(self.optimizers, self.wrappers)
        later = partial(self.lookahead, grad, raw=raw, among=among)
        # Without a closed form a copy of the optimizer takes a step, which may communicate, so all ranks must do it.
        return later if raw or all(map(lookahead.closed, self.optimizers)) else later()

    def momentum(self) -> Vec:
        """The base optimizer's momentum: SGD's momentum buffer or Adam's ``exp_avg``; zero before the first step."""
        return lookahead.each(lambda o, p, _: lookahead.momentum(o, p), self.optimizers, self.params, self.params)

    def denominators(self, grad: Vec) -> Vec:
        """What the base optimizer would divide by in its next step with this gradient: Adam's ``sqrt(v) + eps``.

        v is the second moment after this gradient, with bias correction, so it is known in the first step, too.

        Raises:
            UsageError: An optimizer is neither Adam nor AdamW.
        """
        self.check_denominators()
        return lookahead.each(lookahead.denominators, self.optimizers, self.params, grad)

    def check_denominators(self) -> None:
        """Refuse optimizers without a second moment.

        Raises:
            UsageError: An optimizer is neither Adam nor AdamW.
        """
        for optimizer in self.optimizers:
            lookahead.check_denominators(optimizer)

    @property
    def owners(self) -> list[nn.Module]:
        """The module of each parameter; of a tied one the first."""
        return self.parameters.owners

    def selected(self, geometry: Geometry) -> list[bool]:
        """Which parameters a geometry's ``select`` accepts, including those in groups with ``rho=0``."""
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
        """Start to copy a small tensor to the host; return the values of the previous call with this name.

        The host does not wait for the device. The first call returns None.

        Args:
            name: The name of the values.
            tensor: The tensor on the device.

        Returns:
            A number or a list of numbers, as ``tensor.tolist()``.

        Raises:
            UsageError: ``tensor`` is not a tensor.
        """
        _check_sent("later", tensor)
        return self.lagged.swap(self._prefix + name, tensor)

    def now(self, tensor: Tensor) -> Any:
        """Read a small tensor on the host, which waits for the device.

        On several ranks all must call this, and all get the values of the first rank.

        Returns:
            A number or a list of numbers, as ``tensor.tolist()``.

        Raises:
            UsageError: ``tensor`` is not a tensor.
        """
        _check_sent("now", tensor)
        return read(collectives.first(tensor, self.ranks))

    def averaged(self, tensor: Tensor) -> Tensor:
        """The mean of a small tensor, such as a loss, over the ranks that divide a batch, as gradients are averaged.

        The host does not wait for the device. On several ranks all must call this, and all get the same values.

        Returns:
            A tensor of the same shape.

        Raises:
            UsageError: ``tensor`` is not a tensor.
        """
        _check_sent("averaged", tensor)
        total, ranks = self.work.replicas.total(tensor, sync=True)
        return total / ranks if ranks > 1 else total

    @contextmanager
    def scope(self, prefix: str) -> Iterator[None]:
        """The context of a plan inside another plan: ``memory`` is the entries with this prefix, without the prefix.

        At the end, the entries of the inner ``memory`` replace those entries. The names of lagged values also get the
        prefix.
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
        """The radius of the parameters in this step: one number for all, or one per parameter, 0 for excluded ones."""
        return self.parameters.radii(self.scheduled(rho), geometry)

    def scheduled(self, value: float | Schedule) -> float:
        """The number that a schedule gives in this step; a number is itself."""
        if not isinstance(value, Schedule):
            return value
        lr = self.optimizers[0].param_groups[0]["lr"]
        return value.at(self.step, lr, self.progress) if value.needs_progress else value.at(self.step, lr)

    def holds(self, when: When) -> bool:
        """Whether a condition on the step or on the progress is true now."""
        return when.holds(self.step, self.progress) if when.needs_progress else when.holds(self.step)


def _check_sent(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise UsageError(
            f"engine.{name} must be given a tensor of few entries, but was given a {type(value).__name__}; send a "
            "scalar such as vec.norm(here.grad); what the host knows already needs no sending"
        )
