"""One method at work on one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.core.batch import Batches
from lowland.core.cutting import Cutter
from lowland.core.errors import UsageError
from lowland.core.lagged import Lagged
from lowland.core.loss import LossFn
from lowland.engine import doors, plans, state, watch
from lowland.engine.answers import Answers
from lowland.engine.parameters import Parameters
from lowland.engine.progress import Progress
from lowland.engine.step import drive
from lowland.executors.base import Executor, Work
from lowland.executors.counted import Cost, Counted
from lowland.executors.data_parallel import Replicas
from lowland.executors.local import Pass
from lowland.executors.mesh.mesh import Mesh, along
from lowland.methods.base import Method


class Engine(Answers):
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
        loss_fn: ``(model, batch) -> loss``: of shape ``(B,)``, one per example; of shape ``()``, their mean, which is
            never cut; or a :class:`lowland.Loss`, a sum and what it is divided by, which is combined exactly over parts
            and ranks. It may be None where the caller runs forward and backward: see :meth:`passes`.
        mesh: A ``DeviceMesh`` over whose groups the probes of a step are divided, such as ``mesh["probe"]``; over a
            dimension named "replicate" the engine averages gradients, where no wrapper of the model does.
        executor: Where probes are answered; by default one after the other, here.
        scaler: A ``torch.amp.GradScaler``. ``.grad`` comes out scaled, as its ``unscale_`` and ``step`` expect. An
            overflow in any pass makes all of it NaN, so that the scaler skips the step; vectors in memory stay as they
            were (SAMPa starts cold), while a method's own step counts go on.
        micro_batch: Most examples in one forward pass; larger batches are cut and summed: the same step, unless
            examples see each other, as in BatchNorm.
        cut: How batches are cut, by ``micro_batch`` and by methods that choose or divide examples: a
            :class:`lowland.Cutter`. By default ``Slices()``: tensors along dimension 0.
        rng: "free" lets every pass draw its own dropout mask; "shared" is one for all passes on the same examples, and
            one draw per step of Python's ``random``, NumPy's global generator, and generators that model and loss
            function keep. Loader workers and random numbers of other libraries are not rewound.
        seed: Seed of the method's own random decisions.
        allow_unaveraged: Accept several ranks over which nobody averages gradients, for trainings that are independent
            or that the caller averages.
        allow_low_precision: Accept bf16 or fp16 parameters, whose perturbation is mostly lost in rounding.
        total_steps: Calls of :meth:`backward` in the whole training, >= 1, from which ``progress`` is counted.

    Attributes:
        step: Completed calls of :meth:`backward`. Schedules, cycles and warm-ups count these: accumulating n times is n
            steps, but one call on ``Parts`` of n is one.
        progress: How much of the training is done, in [0, 1], for methods and schedules that go by it, such as
            ``Late(start=0.9)``. It is ``step / total_steps``, unless the caller sets it as it sets the learning rate,
            ``engine.progress = 0.37``: to the same number on all ranks, before every step, and anew after a resume.
        loss: The loss of the last step, detached, shape ``()``, as its method reports it; None before the first. With a
            ``Loss`` it is that over all ranks, else this rank's.
        aux: What the loss function returned in ``Loss(…, aux=…)`` in the pass that reports, detached, so that training
            accuracy needs no further forward: a list if that was run in several parts; None if there was none, or
            if another group of a probe mesh ran it.
        memory: The method's checkpointed state.
        rng: The method's own random numbers, the same on every rank.
        model: The model; several modules are one ``ModuleList`` or ``ModuleDict`` here, whose names they get.
        optimizers, params, names: The base optimizers, the trainable parameters, and the parameters' names.

    Raises:
        ArgumentError: An argument breaks its rule.
        ParameterError: Model and optimizer disagree about parameters, or these cannot be perturbed reliably.
    """

    loss: Tensor | None = None
    aux: Any = None

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
        cut: Cutter | None = None,
        rng: str = "free",
        seed: int = 0,
        allow_low_precision: bool = False,
        allow_unaveraged: bool = False,
        total_steps: int | None = None,
    ) -> None:
        doors.check_method(method)
        doors.check_loss_fn(loss_fn)
        flags = {"allow_low_precision": allow_low_precision, "allow_unaveraged": allow_unaveraged}
        doors.check_options(scaler, executor, micro_batch, rng, flags)
        self.bound = partial(doors.bound, model=model)  # what loss functions of methods go through, too
        model, loss_fn = doors.one_module(model), self.bound(loss_fn)
        self.method, self.model, self.loss_fn = method, model, loss_fn
        self.training = Progress(total_steps, method.kind if method.needs_progress else None)
        self.optimizers = doors.all_optimizers(optimizer)
        self.parameters = Parameters(model, self.optimizers, allow_low_precision=allow_low_precision)
        self.params, self.names = self.parameters.vec, self.parameters.names
        groups = along(mesh) if mesh is not None else {"probe": executor.group} if isinstance(executor, Mesh) else {}
        executor = Mesh(groups["probe"], executor) if "probe" in groups and mesh is not None else executor
        self.batches = Batches(cut)
        self.executor = executor if isinstance(executor, Counted) else Counted(executor)
        self.executor.batches = self.batches
        replicas = Replicas(model, self.params, groups, unaveraged=allow_unaveraged)
        if micro_batch is not None or not method.synchronized:
            replicas.check_static()
        options = {"scaler": scaler, "micro_batch": micro_batch, "rng": rng, "replicas": replicas}
        self.work = Work(model, self.params, loss_fn=loss_fn, batches=self.batches, **options)
        self.lagged, self.rng, self.step = Lagged(), doors.generator(seed), 0
        self.memory = plans.memory(method.kind, method.init([p.detach() for p in self.params]))
        watch.unshared(method.kind, self.memory, self.params, self.names)
        self.vector_keys = state.vector_keys(self.memory, self.params)
        self.table_keys = [k for k, v in self.memory.items() if isinstance(v, Tensor)]
        self.under_way, self.ranks = False, list(dict.fromkeys([*groups.values(), *replicas.groups]))
        doors.check_chosen(method, self.selected, self.parameters.group_radii)
        method.validate(self)
        if groups or replicas.groups:
            made = {"method": method, "rng": rng, "seed": seed, "total_steps": total_steps}
            replicas.check(made, self.names, list(groups.values()))

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

        Gradients of a large batch are accumulated in one of two ways. One call on ``Parts([first, second])``, or with
        ``micro_batch``, perturbs all examples together: the step of the large batch. One call for each part perturbs
        each by its own gradient and adds the results, which for ``SAM`` is mSAM; schedules and cycles count each call.

        Args:
            batch: Any object that the loss function takes, but no iterator, which can be read once. Only methods that
                cut, keep or choose examples look inside: see ``cut``.

        Returns:
            The mean training loss, detached, shape ``()``.

        Raises:
            BatchError: The batch is empty, or must be cut and cannot be.
            LossError: The loss function returns something unusable, or a mean where the batch is cut.
        """
        with closing(drive(self, batch)) as step:
            asked = next(step)
            while True:
                try:
                    # Readings are handed over without a name here, so that a plan can free them.
                    asked = step.send(self.executor.run(self.work, asked))
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
            One pass for every probe, in order. Leaving the loop early takes the step back and warns, because then there
            is no gradient to train with.

        Raises:
            UsageError: The method needs the batch, or micro-batches were asked for, which only
                :meth:`backward` can cut.
        """
        if self.work.micro_batch is not None:
            raise UsageError(
                "micro_batch cuts what backward(batch) runs; with passes, pass Parts([…]) and loop over p.parts()"
            )
        with closing(drive(self, batch)) as step, doors.to_the_end(self):
            asked = next(step)
            while True:
                if any(probe.loss_fn is not None for probe in asked):
                    raise UsageError(f"{self.method.kind} asks for another loss; call engine.backward(batch)")
                try:
                    asked = step.send((yield from self.executor.passes(self.work, asked, step.close)))
                except StopIteration:
                    return

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs beside model and optimizer; safe for ``torch.load(weights_only=True)``."""
        return state.save(self)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Go on where :meth:`state_dict` was taken. Nothing changes unless all of it fits.

        Args:
            state_dict: What :meth:`state_dict` gave.
            strict: False lets an engine with more parameters take over memory by name; new ones start afresh.

        Raises:
            StateError: It was taken with another method or other parameters, or is incomplete; or ``strict`` is False
                and parameters are missing here, or the method keeps a number per parameter.
        """
        state.load(self, state_dict, strict)
