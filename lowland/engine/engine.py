"""The engine: runs a method on a model and fills ``.grad``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from lowland.core.batch import Batches
from lowland.core.cutting import Cutter
from lowland.core.errors import UsageError
from lowland.core.lagged import Lagged
from lowland.core.loss import LossFn
from lowland.engine import doors, inside, plans, state, watch
from lowland.engine.answers import Answers
from lowland.engine.parameters import Parameters
from lowland.engine.progress import Progress
from lowland.engine.step import drive
from lowland.engine.watch import is_foreign
from lowland.executors.auto import Auto
from lowland.executors.base import Executor, Work
from lowland.executors.counted import Cost, Counted
from lowland.executors.data_parallel import Replicas
from lowland.executors.local import Pass
from lowland.executors.mesh.mesh import Mesh, along
from lowland.methods.base import Method


class Engine(Answers):
    """Runs a method on a model: ``backward(batch)`` replaces ``loss.backward()``.

    Clipping, GradScaler, ``optimizer.step()`` and schedulers do not change::

        engine = lowland.Engine(lowland.SAM(rho=0.05), model, optimizer, loss_fn)
        for batch in loader:
            loss = engine.backward(batch)
            optimizer.step()
            optimizer.zero_grad()

    Args:
        method: The method, such as ``SAM(rho=0.05)``.
        model: The model, or several modules as a list, tuple or dict, such as an encoder and a criterion with weights;
            ``loss_fn`` gets the same object. All trainable parameters must be in an optimizer.
        optimizer: The base optimizer, or several. The engine neither wraps nor changes them. A parameter group's
            ``"rho"`` overrides the method's; 0 leaves the group unperturbed. Schedules that follow the learning rate
            use that of the first group of the first optimizer.
        loss_fn: A function ``(model, batch) -> loss``. The loss has shape ``(B,)``, one per example; or shape ``()``,
            their mean, which is never cut; or is a :class:`lowland.Loss`, a sum and its divisor, which combine exactly
            over parts and ranks. It may be None if the caller runs forward and backward: see :meth:`passes`.
        mesh: A ``DeviceMesh`` whose groups divide the probes of a step, such as ``mesh["probe"]``. Over a dimension
            named "replicate" the engine averages gradients, if no wrapper of the model does.
        executor: The executor that answers probes; by default one after the other in this process. "auto" answers
            probes that a method asks together in one pass, if the first steps show that this is faster:
            :class:`lowland.executors.Auto`.
        scaler: A ``torch.amp.GradScaler``. ``.grad`` is scaled, as its ``unscale_`` and ``step`` expect. After an
            overflow in any pass, ``.grad`` is NaN, so that the scaler skips the step. Vectors in memory then keep their
            values (SAMPa restarts without its old gradient), but a method's step counts increase.
        micro_batch: The most examples in one forward pass; larger batches are cut and their gradients summed. The step
            is the same, unless the model mixes examples, as BatchNorm does.
        cut: A :class:`lowland.Cutter`, which cuts batches for ``micro_batch`` and for methods that choose or divide
            examples. By default ``Slices()``: tensors along dimension 0.
        rng: "free" draws a dropout mask per pass; "shared" uses one mask for all passes on the same examples, and one
            draw per step from Python's ``random``, NumPy's global generator, and the generators that model and loss
            function keep. Loader workers and random numbers of other libraries are not rewound.
        seed: The seed of the method's random choices.
        allow_unaveraged: Accept several ranks over which no gradients are averaged, for independent trainings or for
            a caller who averages.
        total_steps: The number of calls of :meth:`backward` in the training, >= 1, for ``progress``.

    Attributes:
        step: The number of completed calls of :meth:`backward`. Schedules, cycles and warm-ups count these: n
            accumulating calls are n steps, but one call on ``Parts`` of n is one step.
        progress: The completed fraction of the training, in [0, 1], for methods and schedules that need it, such as
            ``Late(start=0.9)``. It is ``step / total_steps``, unless the caller sets it like a learning rate,
            ``engine.progress = 0.37``: to the same number on all ranks, before every step, and again after a resume.
        loss: The loss of the last step, detached, shape ``()``, as its method reports it; None before the first step.
            With a ``Loss`` it is the loss over all ranks, else this rank's.
        aux: The auxiliary output ``Loss(…, aux=…)`` of the pass that reports, detached, for example for the training
            accuracy: a list if the pass ran in several parts; None if there was no output, or if another group of a
            probe mesh ran the pass.
        memory: The method's checkpointed state.
        rng: The random number generator of the method, the same on every rank.
        model: The model; several modules are combined to one ``ModuleList`` or ``ModuleDict``.
        optimizers, params, names: The base optimizers, the trainable parameters, and the parameters' names.

    Raises:
        ArgumentError: An argument breaks its rule.
        ParameterError: Model and optimizer disagree about parameters, or these cannot be perturbed reliably.
        UsageError: The method cannot work with the optimizer, the loss function or a wrapper of the model.
        RankError: The ranks have different methods, seeds, parameters or weights.
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
        executor: Executor | Literal["auto"] | None = None,
        scaler: Any = None,
        micro_batch: int | None = None,
        cut: Cutter | None = None,
        rng: str = "free",
        seed: int = 0,
        allow_unaveraged: bool = False,
        total_steps: int | None = None,
    ) -> None:
        doors.check_method(method)
        doors.check_loss_fn(loss_fn)
        doors.check_options(scaler, executor, micro_batch, rng, {"allow_unaveraged": allow_unaveraged})
        self.bound = partial(doors.bound, model=model)  # methods with their own loss functions use it, too
        model, loss_fn = doors.one_module(model), self.bound(loss_fn)
        self.method, self.model, self.loss_fn = method, model, loss_fn
        self.training = Progress(total_steps, method.kind if method.needs_progress else None)
        self.optimizers, self.wrappers = doors.all_optimizers(optimizer), inside.own_steps(optimizer)
        self.parameters = Parameters(model, self.optimizers)
        self.params, self.names = self.parameters.vec, self.parameters.names
        executor = Auto.of(self.params) if executor == "auto" else executor
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
        doors.check_exchanged(self.work, groups)
        self.lagged, self.rng, self.step, self.foreign_plan = Lagged(), doors.generator(seed), 0, is_foreign(method)
        self.memory = plans.memory(method.kind, method.init([p.detach() for p in self.params]), self.params)
        watch.unshared(method.kind, self.memory, self.params, self.names)
        self.vector_keys = plans.vector_keys(self.memory, self.params)
        self.table_keys = [k for k, v in self.memory.items() if isinstance(v, Tensor)]
        self.under_way, self.ranks = False, list(dict.fromkeys([*groups.values(), *replicas.groups]))
        doors.check_chosen(method, self.selected, self.parameters.group_radii)
        doors.check_fits(method, self)
        if groups or replicas.groups:
            made = {"method": method, "rng": rng, "seed": seed, "total_steps": total_steps}
            replicas.check(made, self.names, list(groups.values()))

    @property
    def optimizer(self) -> Optimizer:
        """The base optimizer.

        Raises:
            UsageError: There are several optimizers.
        """
        if len(self.optimizers) > 1:
            raise UsageError(
                f"engine.optimizer is the only optimizer, but this engine has {len(self.optimizers)}; use "
                "engine.optimizers"
            )
        return self.optimizers[0]

    @property
    def width(self) -> int:
        """The number of probes that the executor answers at once."""
        return self.executor.width

    @property
    def cost(self) -> Cost:
        """The counted costs of all steps so far."""
        return self.executor.cost

    # The front doors

    def backward(self, batch: Any) -> Tensor:
        """Add the method's gradient to ``.grad``, as ``loss.backward()`` adds the plain gradient.

        Weights are bit-identical before and after. After an exception, ``.grad``, memory and step counter are restored,
        too.

        There are two ways to accumulate the gradients of a large batch. One call on ``Parts([first, second])``, or with
        ``micro_batch``, perturbs by the gradient of all examples: this is the step of the large batch. One call for
        each part perturbs by the gradient of that part and adds the results, which for ``SAM`` is mSAM; schedules and
        cycles count each call.

        Args:
            batch: Any object that the loss function takes, except an iterator, which can be read only once. Only
                methods that cut, keep or choose examples read its contents: see ``cut``.

        Returns:
            The mean training loss, detached, shape ``()``.

        Raises:
            BatchError: The batch is empty, or must be cut and cannot be cut.
            LossError: The loss function returns no valid loss, or a mean although the batch is cut.
            ParameterError: The loss reaches trainable tensors that are not the engine's, or parameters were replaced or
                unfrozen since the engine was made.
            UsageError: The gradient would be wrong, for example because forward writes weights; or the plan breaks one
                of its rules.
            RankError: The ranks have different batches, or reach different parameters.
        """
        with closing(drive(self, batch)) as step:
            probes = next(step)
            while True:
                try:
                    # The readings have no name here, so that the plan can free them.
                    probes = step.send(self.executor.run(self.work, probes))
                except StopIteration as done:
                    return done.value  # type: ignore[no-any-return]

    def passes(self, batch: Any = None) -> Iterator[Pass]:
        """Take a step like :meth:`backward`, but the caller runs forward and backward of each pass.

        ::

            for p in engine.passes(batch):
                with p:
                    p.backward(loss_fn(model, p.batch))

        Args:
            batch: The batch, which the passes return as ``p.batch``; may be None for methods that need no batch.

        Yields:
            One pass for every probe, in order. Leaving the loop early reverts the step and warns, because no gradient
            was computed.

        Raises:
            UsageError: The method needs the batch; or the engine has ``micro_batch``, with which only :meth:`backward`
                can cut.
        """
        if self.work.micro_batch is not None:
            raise UsageError(
                "micro_batch cuts what backward(batch) runs; with passes, pass Parts([…]) and loop over p.parts()"
            )
        with closing(drive(self, batch)) as step, doors.to_the_end(self):
            probes = next(step)
            while True:
                if any(probe.loss_fn is not None for probe in probes):
                    raise UsageError(f"{self.method.kind} asks for another loss; call engine.backward(batch)")
                try:
                    probes = step.send((yield from self.executor.passes(self.work, probes, step.close)))
                except StopIteration:
                    return

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The state that a resume needs besides model and optimizer; safe for ``torch.load(weights_only=True)``."""
        return state.save(self)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> None:
        """Load a state from :meth:`state_dict`. If it does not fit, the engine does not change.

        Args:
            state_dict: The state.
            strict: False loads memory by name into an engine with more parameters; new parameters get initial memory.

        Raises:
            StateError: The state is from another method or other parameters, or is incomplete; or ``strict`` is False
                and the engine lacks parameters of the state, or the method keeps a number per parameter.
        """
        state.load(self, state_dict, strict)
