"""One method at work on one model."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowland import batch as batches
from lowland import checks, doors, lookahead, state, vec
from lowland.errors import ArgumentError, UsageError
from lowland.executors.base import Executor, Work
from lowland.executors.counted import Cost, Counted
from lowland.executors.local import Pass
from lowland.executors.mesh import Mesh, along
from lowland.geometry import Geometry, Radii
from lowland.lagged import Lagged
from lowland.method import Method
from lowland.parameters import Parameters
from lowland.probe import LossFn, Probe, Reading, conversation
from lowland.replicas import Replicas
from lowland.schedule import Schedule
from lowland.vec import Vec

Drive = Generator[tuple[Probe, ...], tuple[Reading, ...], Tensor]


class Engine:
    """Puts a method to work on a model: ``backward(batch)`` stands where ``loss.backward()`` stood.

    Clipping, GradScaler, ``optimizer.step()`` and schedulers stay as they are::

        engine = lowland.Engine(lowland.SAM(rho=0.05), model, optimizer, loss_fn)
        for batch in loader:
            loss = engine.backward(batch)
            optimizer.step()
            optimizer.zero_grad()

    Args:
        method: The method, such as ``SAM(rho=0.05)``.
        model: The model, or several modules as a list, tuple or dict, such as an encoder and a criterion with weights;
            ``loss_fn`` gets what is passed here. All trainable parameters must be in an optimizer.
        optimizer: The base optimizer, or several; never wrapped, never written to. A parameter group's ``"rho"``
            overrides the method's; 0 leaves the group unperturbed. Schedules that follow the learning rate follow
            that of the first group of the first optimizer.
        loss_fn: ``(model, batch) -> loss`` of shape ``(B,)``, one per example, or ``()``, their mean. It may be
            None where the caller runs forward and backward: see :meth:`passes`.
        mesh: A ``DeviceMesh`` over whose groups the probes of a step are divided, such as ``mesh["probe"]``; over a
            dimension named "replicate" the engine averages gradients, where no wrapper of the model does.
        executor: Where probes are answered; by default one after the other, here.
        scaler: A ``torch.amp.GradScaler``. ``.grad`` comes out scaled, as its ``unscale_`` and ``step`` expect. An
            overflow in any pass makes all of it NaN, so that the scaler skips the step; vectors in memory stay as they
            were (SAMPa starts cold), while a method's own step counts go on.
        micro_batch: Most examples in one forward pass; larger batches are cut and summed: the
            same step, unless examples see each other, as in BatchNorm.
        rng: "free" lets every pass draw its own dropout mask; "shared" is one for all passes on the same examples.
        seed: Seed of the method's own random decisions.
        allow_low_precision: Accept bf16 or fp16 parameters, whose perturbation is mostly lost in rounding.

    Attributes:
        step: Completed calls of :meth:`backward` (accumulating n times is n steps).
        memory: The method's checkpointed state.
        rng: The method's own random numbers, the same on every rank.
        optimizers: The base optimizers.
        params: The trainable parameters.
        names: Their names.

    Raises:
        ArgumentError: An argument breaks its rule.
        ParameterError: Model and optimizer disagree about parameters, or these cannot be perturbed reliably.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
        optimizer: Optimizer | Sequence[Optimizer],
        loss_fn: LossFn | None = None,
        *,
        mesh: Any = None,
        executor: Executor | None = None,
        scaler: Any = None,
        micro_batch: int | None = None,
        rng: str = "free",
        seed: int = 0,
        allow_low_precision: bool = False,
    ) -> None:
        doors.check_method(method)
        doors.check_loss_fn(loss_fn)
        doors.check_scaler(scaler)
        doors.check_flag("allow_low_precision", allow_low_precision)
        if executor is not None and not isinstance(executor, Executor):
            raise ArgumentError(f"executor must be an Executor, but is {executor!r}; pass a value such as Batched()")
        if micro_batch is not None:
            checks.whole("micro_batch", micro_batch, 1, "None sets no limit")
        checks.one_of("rng", rng, ("free", "shared"))
        loss_fn, model = doors.bound(loss_fn, model), doors.one_module(model)
        self.method, self.model, self.loss_fn = method, model, loss_fn
        self.optimizers = doors.all_optimizers(optimizer)
        self._parameters = Parameters(model, self.optimizers, allow_low_precision=allow_low_precision)
        self.params, self.names = self._parameters.vec, self._parameters.names
        groups = along(mesh) if mesh is not None else {"probe": executor.group} if isinstance(executor, Mesh) else {}
        executor = Mesh(groups["probe"], executor) if "probe" in groups and mesh is not None else executor
        self.executor = executor if isinstance(executor, Counted) else Counted(executor)
        replicas = Replicas(model, self.params, groups.get("replicate"))
        self.work = Work(
            model, self.params, loss_fn=loss_fn, scaler=scaler, micro_batch=micro_batch, rng=rng, replicas=replicas
        )
        self.lagged, self.rng, self.step = Lagged(), doors.generator(seed), 0
        self.memory: dict[str, Any] = method.init([p.detach() for p in self.params])
        self.vector_keys = state.vector_keys(self.memory, self.params)
        self.table_keys = [k for k, v in self.memory.items() if isinstance(v, Tensor)]
        self._under_way = False
        doors.check_chosen(method, self.selected, self._parameters.group_radii)
        method.meet(self)
        if groups or replicas.groups:
            replicas.check({"method": method, "rng": rng, "seed": seed}, self.names, list(groups.values()))

    @property
    def optimizer(self) -> Optimizer:
        """The base optimizer, where there is one.

        Raises:
            UsageError: There are several.
        """
        if len(self.optimizers) > 1:
            raise UsageError(
                f"engine.optimizer is the only optimizer, but this engine has {len(self.optimizers)}; use "
                "engine.optimizers"
            )
        return self.optimizers[0]

    @property
    def width(self) -> int:
        """How many probes the executor answers at once."""
        return self.executor.width

    @property
    def cost(self) -> Cost:
        """What the steps so far have cost, counted."""
        return self.executor.cost

    # The front doors

    def backward(self, batch: Any) -> Tensor:
        """Add the method's gradient to ``.grad``, as ``loss.backward()`` adds the plain one.

        Weights are bit-identical before and after. If anything is raised inside, ``.grad``, memory and step
        counter are as before, too.

        Args:
            batch: A pytree of tensors that share dimension 0.

        Returns:
            The mean training loss, detached, shape ``()``.

        Raises:
            BatchError: The batch is empty, or its tensors disagree.
            LossError: The loss function returns something unusable.
        """
        batches.size(batch)
        with closing(self._drive(batch)) as drive:
            asked = next(drive)
            while True:
                try:
                    # Readings are handed over without a name here, so that a plan can free them.
                    asked = drive.send(self.executor.run(self.work, asked))
                except StopIteration as done:
                    return done.value  # type: ignore[no-any-return]

    def passes(self, batch: Any = None) -> Iterator[Pass]:
        """The same step, but the caller runs forward and backward.

        ::

            for p in engine.passes(batch):
                with p:
                    p.backward(loss_fn(model, p.batch))

        Args:
            batch: What the passes hand out as ``p.batch``; may be None for methods that need no batch.

        Yields:
            One pass for every probe, in order. Leaving the loop early takes the step back.

        Raises:
            UsageError: The method needs the batch, or micro-batches were asked for, which only
                :meth:`backward` can cut.
        """
        if batch is not None:
            batches.size(batch)
        elif self.method.needs_batch:
            raise UsageError(
                f"{self.method.kind} keeps or cuts batches, which a closure hides; "
                "call engine.backward(batch) or engine.passes(batch)"
            )
        if self.work.micro_batch is not None:
            raise UsageError("micro_batch cuts what backward(batch) runs; with passes, cut the batch yourself")
        with closing(self._drive(batch)) as drive:
            asked = next(drive)
            while True:
                if any(probe.loss_fn is not None for probe in asked):
                    raise UsageError(f"{self.method.kind} asks for another loss; call engine.backward(batch)")
                try:
                    asked = drive.send((yield from self.executor.passes(self.work, asked, drive.close)))
                except StopIteration:
                    return

    # What plans use

    def lookahead(self, grad: Vec, *, raw: bool = False, among: Sequence[bool] | None = None) -> Vec:
        """The base optimizer's next step for this gradient, not taken: a displacement from the weights.

        Args:
            grad: One tensor per parameter.
            raw: Leave out momentum, weight decay and preconditioning: ``-lr * grad``.
            among: Which parameters the gradient has reached; the others stay where they are, as the optimizer leaves
                them, and so do frozen ones.
        """
        ask = lookahead.raw if raw else lookahead.displacement
        return lookahead.each(ask, self.optimizers, self.params, grad, self._parameters.trained(among))

    def ahead(
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
        return self._parameters.select(geometry)

    @property
    def reached(self) -> list[bool]:
        """Which parameters the passes of this step have reached so far."""
        return self.work.reached

    @property
    def trained(self) -> list[bool]:
        """Which parameters are trained in this step: all but those frozen since the engine was made."""
        return self._parameters.trained(None) or [True] * len(self.params)

    def later(self, name: str, tensor: Tensor) -> Any:
        """Send device scalars to the host; get those sent under ``name`` the last time, None the first time."""
        return self.lagged.swap(name, tensor)

    def radii(self, rho: float | Schedule, geometry: Geometry) -> Radii:
        """The radius for every parameter: a number where all share it, else one each, 0 for excluded ones."""
        value = rho.at(self.step, self.optimizers[0].param_groups[0]["lr"]) if isinstance(rho, Schedule) else rho
        return self._parameters.radii(value, geometry)

    # The step itself

    def _drive(self, batch: Any) -> Drive:
        """Run the plan for whoever answers its probes; on any exception, leave all as it was."""
        if self._under_way:
            raise UsageError("a step is already under way; finish or leave the loop over engine.passes() first")
        self._parameters.check_unchanged(self.step, self.work.replicas.fsdp)
        before = dict(self.memory), dict(self.lagged.waiting), self.rng.getstate()
        held = [p.grad for p in self.params]
        done = False
        self._under_way = True
        try:
            for p in self.params:
                p.grad = None
            self.work.begin(self.step)
            self.executor.begin(batch)
            loss, grad = yield from conversation(self.method.plan(self, batch))
            if self.work.replicas.groups:
                grad = self.work.replicas.conclude(self.work, grad, self.later)
            self._fill(held, grad, before[0])
            done = True
        finally:
            self._under_way = False
            if not done:
                self.memory, self.lagged.waiting = before[0], before[1]
                self.rng.setstate(before[2])
                for p, h in zip(self.params, held, strict=True):
                    p.grad = h
        self.executor.end()
        self.step += 1
        return loss

    def taken_back(self) -> Callable[[], None]:
        """A function that puts memory, lagged values, random numbers, counter and cost back to what they are now."""
        memory, waiting, rng = dict(self.memory), dict(self.lagged.waiting), self.rng.getstate()
        step, cost = self.step, dataclasses.replace(self.cost)

        def back() -> None:
            self.memory, self.lagged.waiting, self.step, self.executor.cost = memory, waiting, step, cost
            self.rng.setstate(rng)

        return back

    def _fill(self, held: list[Tensor | None], grad: Vec, before: dict[str, Any]) -> None:
        """Put the step's gradient where the optimizer looks for it."""
        scale = self.work.scale()
        if scale is not None and self.work.finite is not None:
            finite = self.work.finite
            # NaN reaches every parameter, so that the scaler sees it and skips the step.
            grad = vec.scale(grad, torch.where(finite, scale, torch.full_like(scale, float("nan"))))
            state.keep_if(self, finite, before)
        # The caller clips and unscales .grad in place, which must not reach a vector in memory.
        for key in self.vector_keys:
            if any(map(operator.is_, grad, self.memory[key])):
                grad = [g.clone() if g is t else g for g, t in zip(grad, self.memory[key], strict=True)]
        for p, h, g, reached in zip(self.params, held, grad, self.work.reached, strict=True):
            if not reached:
                p.grad = h
            elif h is None:
                p.grad = g
            else:
                p.grad = h.add_(g)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs beside model and optimizer; safe for ``torch.load(weights_only=True)``."""
        return state.save(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken. Nothing changes unless all of it fits.

        Raises:
            StateError: It was taken with another method or other parameters, or is incomplete.
        """
        state.load(self, state_dict)
