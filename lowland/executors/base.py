"""What an executor is, and what it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core import precision
from lowland.core.batch import Batches
from lowland.core.errors import UsageError
from lowland.core.loss import LossFn
from lowland.core.probe import Probe, Reading
from lowland.core.vec import Vec
from lowland.executors import modes
from lowland.executors.buffers import Buffers
from lowland.executors.data_parallel import Replicas
from lowland.executors.examples import Examples
from lowland.executors.guards import dismiss, outsiders
from lowland.executors.modes import SharedRNG
from lowland.executors.ownership import Ownership
from lowland.executors.step_record import StepRecord


class Work:
    """A model under training, as executors see it.

    What one step has seen is in ``step``, a new :class:`StepRecord` for every step.

    Attributes:
        model: The model; its weights move only inside a pass.
        params: Its trainable parameters.
        device: The device of the parameters.
        loss_fn: The training loss, ``(model, batch) -> (B,), () or Loss``; None where the caller runs forward.
        scaler: A GradScaler or None.
        micro_batch: Most examples in one forward pass; None means no limit.
        rng: Rewinds random numbers between the passes of a step; None lets them run free.
        replicas: The ranks that divide a batch with this one.
        batches: Cuts batches.
        buffers: What forward writes beside the weights.
        examples: The batches of the step under way.
        ownership: Whether gradients must be copied.
        outsiders: Trainable tensors that the model or the loss function uses besides the engine's.
        first: Whether no step has been completed yet.
        reentrant: Whether backward may run others inside, as reentrant checkpointing does; None: not looked at.
        forward_writes: Whether a layer's forward may write its weights, as an embedding with ``max_norm`` does.
        step: The record of the step under way.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Vec,
        *,
        loss_fn: LossFn | None,
        scaler: Any,
        micro_batch: int | None,
        rng: str,
        replicas: Replicas | None = None,
        batches: Batches | None = None,
    ) -> None:
        self.model = model
        self.params = params
        self.device = params[0].device
        self.low = precision.is_low(params)
        self.loss_fn = loss_fn
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.micro_batch = micro_batch
        self.rng = SharedRNG(self.device) if rng == "shared" else None
        self.replicas = replicas or Replicas(model, params)
        self.batches = batches or Batches()
        self.buffers = Buffers(model, loss_fn)
        self.examples = Examples()
        views = any(ddp.gradient_as_bucket_view for ddp in self.replicas.ddps)
        self.ownership = Ownership(model, self.device, loss_fn, views=views)
        self.first = True
        self.outsiders: list[Tensor] = []
        self.reentrant: bool | None = None
        self._captured = modes.captured(model)
        self._namespaces: list[dict[str, Any]] = []  # of all modules
        self._forwards: list[Any] = []  # what they hold under "forward"
        self.forward_writes = any(getattr(m, "max_norm", None) is not None for m in model.modules())
        self.begin()

    def begin(self, number: int = 0) -> None:
        """Begin the step with this number: its record is empty."""
        power_of_two = number & (number - 1) == 0
        # Steps 0, 1, 2, 4, 8, …; and all of them where forward is known to write weights now and then.
        self.step = StepRecord(number, len(self.params), watched=self.forward_writes or power_of_two)
        if number and power_of_two and not self.reentrant:
            self.reentrant = None
        self.replicas.begin()
        changed = self._recaptured()
        self.ownership.begin(look=self.step.watched or changed)
        self.buffers.begin(self.first or changed)
        self.examples.begin(self.first)
        if self.first:
            self.outsiders = outsiders(self)
        if self.rng is not None:
            self.rng.begin(self.buffers.generators)

    def _recaptured(self) -> bool:
        """Whether a part of the model was captured since the last step, or is no longer.

        Modules that have been added since the last watched step are looked at in the next one.
        """
        if self.step.watched:
            self._namespaces = list(map(vars, modes.modules_of(self.model)))
        forwards = list(map(dict.get, self._namespaces, repeat("forward")))
        if forwards == self._forwards:
            return False
        before, self._forwards, self._captured = self._captured, forwards, modes.captured(self.model)
        return self._captured != before

    def seeds(self, count: int) -> list[int]:
        """Seeds for probes that are answered together, see :meth:`StepRecord.seeds`."""
        return self.step.seeds(count, shared=self.rng is not None)

    def dismiss(self) -> None:
        """Refuse trainable tensors that losses without a graph have reached and that are still there."""
        dismiss(self.step.clear_suspects(), self.loss_fn)

    def named(self, places: Sequence[int]) -> str:
        """The names of some parameters, for a message."""
        names = {id(p): name for name, p in self.model.named_parameters()}
        shown = [names.get(id(self.params[i]), f"parameter {i}") for i in places[:3]]
        return ", ".join(shown) + (f" and {len(places) - 3} more" if len(places) > 3 else "")

    def scale(self) -> Tensor | None:
        """The loss scale of the scaler, shape ``()`` on the device; None without one."""
        if self.scaler is None:
            return None
        one = torch.ones((), device=self.device)
        return self.scaler.scale(one)  # type: ignore[no-any-return]


class Executor(ABC):
    """Answers probes.

    Attributes:
        width: How many probes it answers at once; plans that can choose ask for as many together.
        substitutes: Whether it puts other tensors in the parameters' places, so that all of them are reached even if
            the model has been given others since.
    """

    width: int = 1
    substitutes: bool = False

    @abstractmethod
    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """The readings of ``probes``, in their order. Weights are bit-identical before and after."""

    def passes(
        self, work: Work, probes: tuple[Probe, ...], on_error: Callable[[], None] | None = None
    ) -> Generator[Any, None, tuple[Reading, ...]]:
        """The same, where the caller runs forward and backward: yields a pass for every probe to run here.

        Raises:
            UsageError: This executor must run the model itself.
        """
        raise UsageError(f"{type(self).__name__} must run the model itself; call engine.backward(batch)")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must know of this executor, made of tensors, numbers and text; mostly nothing."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # noqa: B027
        """Load a state from :meth:`state_dict`; it is empty if the training that gave it had another executor."""

    @property
    def sent(self) -> int:
        """Bytes of gradients that this process has given into exchanges with others so far."""
        return 0

    def begin(self, batch: Any) -> None:  # noqa: B027 - most executors keep nothing from step to step
        """A step on ``batch`` begins."""

    def end(self) -> None:  # noqa: B027
        """The step is complete."""
