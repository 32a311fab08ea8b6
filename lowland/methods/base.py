"""The base classes of methods: hyperparameters, initial memory, and a plan."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core import checks
from lowland.core.errors import ArgumentError, LossError, StateError, UsageError
from lowland.core.geometry import L2, Geometry
from lowland.core.probe import Plan, Probe, Reading
from lowland.core.schedule import Schedule, When
from lowland.core.vec import Vec

if TYPE_CHECKING:
    from lowland.engine import Engine


class PositionalError(ArgumentError, TypeError):
    """A field was given without its name. It is also a TypeError, which Python itself would raise."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A sharpness-aware method: an immutable value, which can be printed, compared, varied and converted to JSON.

    Args:
        rho: Radius of the perturbation, >= 0, in parameter norm; a number or a schedule. A parameter group's
            own ``"rho"`` overrides it.
        geometry: How a gradient becomes a displacement of that radius.

    Attributes:
        needs_batch: Whether the method keeps, cuts or reads batches, so that it cannot run behind a closure.
        whole_gradient: Whether every step asks for the gradient of the full batch at the weights. Wrappers that need
            this gradient refuse methods for which it is False.
        synchronized: Whether all gradients that the method asks for are of all parameters and averaged over the
            ranks. False for methods whose probes have ``sync=False`` or ``wrt``.
    """

    rho: float | Schedule = 0.05
    geometry: Geometry = L2()  # noqa: RUF009 - frozen, so it can be shared
    needs_batch: ClassVar[bool] = False
    whole_gradient: ClassVar[bool] = True
    synchronized: ClassVar[bool] = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse fields without a name, before the dataclass does so in fewer words."""
        if args:
            first = next((f.name for f in fields(cls) if f.init), "rho")
            raise PositionalError(
                f"{cls.__name__} takes its fields by name, but got {args[0]!r} without one; write "
                f"{cls.__name__}({first}={args[0]!r})"
            )
        for kind in cls.__mro__[: cls.__mro__.index(Method)]:
            own = [n for n, t in inspect.get_annotations(kind).items() if "ClassVar" not in str(t)]
            if own and issubclass(kind, Method) and "__dataclass_params__" not in vars(kind):
                raise ArgumentError(
                    f"a method must be a dataclass, but {kind.__name__} has the field {own[0]}, which does not count "
                    "without its decorator; write @dataclass(frozen=True, kw_only=True) above the class"
                )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if not isinstance(self.rho, Schedule):
            checks.at_least("rho", self.rho, 0, "rho=0 leaves the plain gradient")
        if not isinstance(self.geometry, Geometry):
            raise ArgumentError(
                f"geometry must be a Geometry, but is {self.geometry!r}; pass L2(), Adaptive() or Layerwise()"
            )
        self.check()

    @property
    def needs_progress(self) -> bool:
        """Whether the method reads ``engine.progress``; by default, whether a schedule or a method in its fields does.

        A method that reads it itself must return True here. The engine then refuses the first step if the progress is
        unknown, and steps in which ranks have different progress.
        """
        inside = [getattr(self, f.name) for f in fields(self)]
        return any(part.needs_progress for part in inside if isinstance(part, Schedule | When | Method))

    @property
    def kind(self) -> str:
        """The class's name with the names of the methods inside: ``Late(LookSAM)``."""
        inside = [getattr(self, f.name) for f in fields(self) if f.init]
        kinds = ", ".join(part.kind for part in inside if isinstance(part, Method))
        return type(self).__name__ + (f"({kinds})" if kinds else "")

    def check(self) -> None:  # noqa: B027 - a method without further fields has nothing to check
        """Refuse fields that break their rule; subclasses override this."""

    def init(self, params: Vec) -> dict[str, Any]:
        """The initial memory of a training. A plan replaces vectors in memory and never changes them in place."""
        return {}

    def validate(self, engine: Engine) -> None:  # noqa: B027 - most methods take any model and any optimizer
        """Refuse a model or an optimizer with which the method cannot work; an engine calls this when it is made."""

    @abstractmethod
    def plan(self, engine: Engine, batch: Any) -> Plan:
        """Yield probes to get readings; return the loss, shape ``()``, and a vector, one tensor per parameter."""

    def ascent(self, engine: Engine, grad: Vec) -> Vec:
        """The displacement along ``grad`` with the method's radius and geometry, one tensor per parameter.

        Raises:
            UsageError: ``grad`` is None, as in the reading of ``Probe(batch, grad=False)``.
        """
        if grad is None:
            raise UsageError(
                "ascent needs a gradient, but got None, as a reading of Probe(batch, grad=False) has it; ask for the "
                "gradient, too: Probe(batch)"
            )
        known = self.geometry.known(engine, grad)
        return self.geometry.ascent(engine.params, grad, engine.radii(self.rho, self.geometry), **known)

    def ascent_(self, engine: Engine, grad: Vec) -> Vec:
        """:meth:`ascent` for a plan that does not need ``grad`` afterwards; its memory may hold the displacement."""
        if grad is None or type(self).ascent is not Method.ascent:
            return self.ascent(engine, grad)
        known = self.geometry.known(engine, grad)
        return self.geometry.ascent_(engine.params, grad, engine.radii(self.rho, self.geometry), **known)

    def ascent_later(self, engine: Engine, grad: Vec) -> Vec | Callable[[], Vec]:
        """:meth:`ascent` for one of several probes that are asked together.

        Returns:
            A function that computes the displacement on the rank that answers the probe. If a method overrides
            ``ascent``, the displacement itself, because its computation may draw random numbers on all ranks.
        """
        later = partial(self.ascent, engine, grad)
        return later if type(self).ascent is Method.ascent else later()

    def generator(self, engine: Engine) -> torch.Generator:
        """A new random number generator on the parameters' device, the same on every rank and after a resume."""
        return torch.Generator(engine.params[0].device).manual_seed(engine.rng.getrandbits(63))

    def per_example(self, reading: Reading) -> Tensor:
        """The losses of a reading, one per example, shape ``(B,)``.

        Raises:
            LossError: The loss function returns their mean or sum.
        """
        if reading.losses is None:
            raise LossError(
                f"{type(self).__name__} chooses examples by their losses, so loss_fn must return one loss per example, "
                'shape (B,), but returned their mean or sum, shape (); use reduction="none" in the loss'
            )
        return reading.losses

    def reshard(self, shares: Sequence[dict[str, Any]], number: int, count: int) -> dict[str, Any]:
        """The memory of one rank after a resume on another number of ranks.

        Args:
            shares: The entries of memory that are no vectors, of each rank of the checkpoint, in the order of ranks.
            number: The rank whose memory is returned.
            count: The new number of ranks.

        Returns:
            The entries of this rank. Entries that are equal on all ranks, such as step counts, do not change.

        Raises:
            StateError: An entry has tensors, which belong to a rank, and the method does not override this function.
        """
        for key, value in shares[0].items():
            if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
                raise StateError(
                    f"memory {key!r} of {self.kind} belongs to one of {len(shares)} ranks and cannot be cut anew for "
                    f"{count}; resume on {len(shares)} ranks, or let the method say how: reshard(shares, number, count)"
                )
        return dict(shares[0])

    def fallback(self, memory: dict[str, Any]) -> dict[str, Any]:
        """The memory whose vectors replace those of a step that is not finite: by default, memory before the step."""
        return memory


@dataclass(frozen=True, kw_only=True)
class Perturbing(Method):
    """A method whose ranks may each perturb by their own gradient.

    Such a method keeps no vector between steps and makes no decision by a gradient, so ranks may differ in a step.

    Args:
        ascent_gradient: "mean" or "local". With "local" each rank computes the step with its own gradients, and only
            the results are averaged.
    """

    ascent_gradient: Literal["mean", "local"] = "mean"

    def __post_init__(self) -> None:
        checks.one_of("ascent_gradient", self.ascent_gradient, ("mean", "local"))
        super().__post_init__()

    @property
    def synchronized(self) -> bool:  # type: ignore[override]
        """True with the mean over the ranks."""
        return self.ascent_gradient == "mean"

    def probe(self, batch: Any, **options: Any) -> Probe:
        """A probe whose gradient is averaged over the ranks, or with "local" is the rank's own.

        Args:
            batch: The examples.
            options: The other arguments of :class:`~lowland.core.probe.Probe`.
        """
        return Probe(batch, sync=self.ascent_gradient == "mean", **options)


@dataclass(frozen=True, kw_only=True)
class Wrapper(Method):
    """A method around another method. It uses the inner method's memory and has no radius and no geometry itself.

    Args:
        inner: The method inside.
    """

    # Not arguments: the inner method has them.
    rho: float | Schedule = field(default=0.0, init=False, repr=False)
    geometry: Geometry = field(default=L2(), init=False, repr=False)
    inner: Method

    def check(self) -> None:
        """Refuse an inner value that is not a method; subclasses call this before their own checks."""
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
        """See :meth:`Method.init`."""
        return self.inner.init(params)

    def validate(self, engine: Engine) -> None:
        """See :meth:`Method.validate`."""
        self.inner.validate(engine)

    def reshard(self, shares: Sequence[dict[str, Any]], number: int, count: int) -> dict[str, Any]:
        """See :meth:`Method.reshard`."""
        return self.inner.reshard(shares, number, count)

    def fallback(self, memory: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`Method.fallback`."""
        return self.inner.fallback(memory)
