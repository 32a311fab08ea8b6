"""Running statistics of BatchNorm and InstanceNorm: frozen in a pass, combined over ranks, or recomputed."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.overrides import TorchFunctionMode

from lowland.core import vec
from lowland.core.batch import Parts
from lowland.core.errors import ArgumentError, UsageError
from lowland.core.probe import Probe
from lowland.executors.modes import compiled, modules_of

if TYPE_CHECKING:
    from lowland.executors.base import Work

# With track_running_stats=False these forwards use the batch's statistics in training mode and write no buffer.
_OBEYS_FLAG = (_BatchNorm.forward, nn.SyncBatchNorm.forward)

TRAINING = 5  # the position of the argument of this name in torch's functions for batch normalization


@torch.no_grad()
def refresh_stats(
    model: nn.Module, loader: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> None:
    """Recompute all running statistics at the current weights, as averages over the batches.

    The model runs on each batch in training mode without gradients. Afterwards its modules have their previous modes.
    After an exception the statistics are unchanged.

    Args:
        model: The model.
        loader: Batches: tensors of inputs, or tuples or lists whose first entry is the inputs. With ``forward``, any
            objects.
        forward: A function ``(model, batch)`` that runs the model on a batch; None calls ``model(inputs)``.

    Warns:
        UserWarning: The model has no running statistics; the loader is not read.

    Raises:
        ArgumentError: There is no batch; ``forward`` is None and a batch is not a tensor, tuple or list; or
            ``forward`` is not callable.
    """
    _check(model, loader, forward)
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        warnings.warn(
            "refresh_stats found no layer with running statistics (BatchNorm or InstanceNorm with "
            "track_running_stats=True), so it changes nothing; leave the call out, or pass the model that has them",
            stacklevel=2,
        )
        return
    modes = {m: m.training for m in model.modules()}
    momenta = [m.momentum for m in norms]
    saved = [[b.clone() for b in m.buffers(recurse=False)] for m in norms]
    is_empty = True
    try:
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # None computes the average over all batches instead of a moving average
        model.train()
        for batch in loader:
            _run(model, batch, forward)
            is_empty = False
        if is_empty:
            raise ArgumentError("loader must give at least one batch, but gave none; pass batches of training inputs")
    except BaseException:
        for m, buffers in zip(norms, saved, strict=True):
            for buffer, copy in zip(m.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(copy)
        raise
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _run(model: nn.Module, batch: Any, forward: Callable[[nn.Module, Any], Any] | None) -> None:
    """Run the model on a batch, or on each part of it."""
    if isinstance(batch, Parts):
        for part in batch:
            _run(model, part, forward)
    elif forward is not None:
        forward(model, batch)
    else:
        inputs = _inputs(batch)
        try:
            model(inputs)
        except Exception as error:
            if not isinstance(inputs, Tensor):
                error.add_note(
                    f"refresh_stats called model(batch) with a {type(inputs).__name__}; say how the model runs on it: "
                    "refresh_stats(model, loader, forward=lambda model, batch: …)"
                )
            raise


def _check(model: Any, loader: Any, forward: Any) -> None:
    """Refuse arguments of the wrong kind."""
    if forward is not None and not callable(forward):
        raise ArgumentError(
            f"forward must be a function (model, batch), but is {forward!r}; write forward=lambda model, batch: …"
        )
    if forward is not None:
        try:
            inspect.signature(forward).bind(None, None)
        except TypeError as error:
            raise ArgumentError(
                f"forward must take (model, batch), but cannot be called so ({error}); write forward=lambda model, "
                "batch: …"
            ) from None
        except ValueError:  # built in
            pass
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model must be a torch.nn.Module, but is a {type(model).__name__}; pass the model itself, "
            "such as engine.model"
        )
    if isinstance(loader, Tensor) or not isinstance(loader, Iterable):
        raise ArgumentError(
            f"loader must give batches one after the other, but is a {type(loader).__name__}; pass a DataLoader, or a "
            "list: refresh_stats(model, [inputs])"
        )


def _inputs(batch: Any) -> Any:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    is_container = isinstance(inputs, Mapping | str | bytes | int | float | tuple | list | type(None))
    if isinstance(inputs, Tensor) or not (is_container or type(inputs).__module__ == "numpy"):
        return inputs
    raise ArgumentError(
        f"loader must give tensors of inputs, or tuples that begin with one, but gave a {type(batch).__name__}; say "
        'how it runs: refresh_stats(model, loader, forward=lambda model, batch: model(batch["inputs"]))'
    )


def obeys_flag(m: nn.Module) -> bool:
    """Whether a module uses the batch's statistics and writes no buffer when ``track_running_stats`` is False."""
    return isinstance(m, _NormBase) and type(m).forward in _OBEYS_FLAG and "forward" not in vars(m)


@contextmanager
def frozen_stats(model: nn.Module) -> Iterator[None]:
    """Do not update running statistics, while BatchNorm in training mode still uses the batch's statistics.

    This sets ``track_running_stats`` of torch's BatchNorm to False, which costs no time. All other buffers that forward
    writes are restored by :class:`lowland.executors.buffers.Buffers`.
    """
    norms = [m for m in modules_of(model) if isinstance(m, _NormBase) and obeys_flag(m)]
    norms = [m for m in norms if m.track_running_stats]  # also in evaluation mode, where the flag changes nothing:
    try:  # the loss function may switch to training
        for m in norms:
            m.track_running_stats = False
        yield
    finally:
        for m in norms:
            m.track_running_stats = True


class GivenStats(TorchFunctionMode):
    """Finds layers whose statistics a function updates that gets them from another module, and restores these.

    The layer's own flag does not keep ``torch.nn.functional.batch_norm`` from updating what it is given, as a module
    that fuses layers gives it. In a compiled model nothing is looked for: it would be compiled again without this mode.

    Args:
        model: The model.
        fused: The layers are added to it.
    """

    def __init__(self, model: nn.Module, fused: set[nn.Module]) -> None:
        super().__init__()
        norms = [] if compiled(model) else [m for m in modules_of(model) if obeys_flag(m)]
        self._norms = {id(m.running_mean): m for m in norms if m.running_mean is not None}
        self._fused = fused
        self._copies: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call of a normalization in training mode, with copies of the statistics that it gets."""
        kwargs = kwargs or {}
        training = kwargs.get("training", args[TRAINING] if len(args) > TRAINING else False)
        if "batch_norm" in getattr(function, "__name__", "") and training is True:
            for t in (*args, *kwargs.values()):
                m = self._norms.get(id(t))
                if m is not None and m not in self._fused:
                    self._fused.add(m)
                    self._copies += [(b, b.clone()) for b in m.buffers(recurse=False)]
        return function(*args, **kwargs)

    @property
    def looks(self) -> bool:
        """Whether there are layers to look for."""
        return bool(self._norms)

    def restore(self) -> None:
        """Restore the statistics that a function has updated."""
        for buffer, copy in self._copies:
            buffer.copy_(copy)


@contextmanager
def restored_stats(model: nn.Module, fused: set[nn.Module]) -> Iterator[None]:
    """The context of a pass that must not update statistics, with :class:`GivenStats`."""
    mode = GivenStats(model, fused)
    if not mode.looks:
        yield
        return
    try:
        with mode:
            yield
    finally:
        mode.restore()


class RunningStats:
    """Combines the updates of running statistics that the ranks of a group make, each with its own probe.

    Args:
        work: The model and the step.
        wave: The probes that are answered together, one per rank.

    Raises:
        UsageError: Several probes update a layer that does not count its batches.
    """

    def __init__(self, work: Work, wave: tuple[Probe, ...]) -> None:
        self.updated = [i for i, p in enumerate(wave) if p.stats]
        norms = work.replicas.norms if self.updated else []
        self.norms = [m for m in norms if m.training and m.track_running_stats]
        counting = (isinstance(m, _BatchNorm) and m.num_batches_tracked is not None for m in self.norms)
        if len(self.updated) > 1 and not all(counting):
            raise UsageError(
                "on a mesh, running statistics of several probes need layers that count their batches, as BatchNorm "
                "does, but the model has others, such as InstanceNorm(track_running_stats=True); set it to False"
            )
        self.buffers = [b for m in self.norms for b in (m.running_mean, m.running_var) if b is not None]
        self.counts = [m.num_batches_tracked for m in self.norms if m.num_batches_tracked is not None]
        self.device = work.device
        self.before = self.flat() if len(self.updated) > 1 else None

    def contribution(self, rank: int) -> Tensor:
        """A rank's row for :meth:`combine`: :meth:`flat`, or zeros if only other probes update the statistics."""
        if self.updated and rank not in self.updated:
            size = sum(b.numel() for b in self.buffers) + len(self.counts)
            return torch.zeros(size, dtype=torch.float64, device=self.device)
        return self.flat()

    def flat(self) -> Tensor:
        """The current statistics in one float64 vector: means and variances, then the counts of updates."""
        if not self.buffers:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        statistics = joined(self.buffers, self.device)
        # The counts are converted separately, because they are not exact in single precision.
        return torch.cat([statistics, torch.stack(self.counts).double()]) if self.counts else statistics

    @torch.no_grad()
    def combine(self, rows: Tensor, rank: int) -> None:
        """Set the statistics to what they would be if one device had answered all probes in order.

        Args:
            rows: The contributions of all ranks of the group, shape ``(ranks, size)``.
            rank: This rank.
        """
        if not self.buffers:
            return
        if self.before is not None:
            self._set(self._sum(self.before, rows))
        elif self.updated[0] != rank:
            self._set(rows[self.updated[0]])

    def _set(self, row: Tensor) -> None:
        values, counts = torch.split(row, [sum(b.numel() for b in self.buffers), len(self.counts)])
        spread_(self.buffers, values)
        if self.counts:
            torch._foreach_copy_(self.counts, list(counts.to(self.counts[0].dtype).unbind()))

    def _sum(self, before: Tensor, rows: Tensor) -> Tensor:
        """The statistics after the updates of all probes in order.

        Each row of ``rows`` has the statistics after one probe's update of ``before``. An update moves the statistics
        by a known weight towards the statistics of the probe's batches, so these can be computed and applied in turn.
        """
        result, offset, number = before.clone(), 0, sum(b.numel() for b in self.buffers)
        for norm in self.norms:
            width = sum(b.numel() for b in (norm.running_mean, norm.running_var) if b is not None)
            layer, offset = slice(offset, offset + width), offset + width
            start = count = before[number]
            for i in self.updated:
                k = rows[i, number] - start  # the probe's updates of the layer: with micro-batches more than one
                change = rows[i, layer] - before[layer]
                alone, weight = (_weight(norm.momentum, k, n) for n in (start, count))
                of_batches = before[layer] + change / torch.where(alone == 0, torch.ones_like(alone), alone)
                result[layer] += (of_batches - result[layer]) * weight
                count = count + k
            result[number] = count
            number += 1
        return result


def joined(buffers: list[Tensor], device: torch.device) -> Tensor:
    """The entries of all buffers in one float64 vector: two launches, whatever the number of layers."""
    if not buffers:
        return torch.zeros(0, dtype=torch.float64, device=device)
    return torch.cat([b.reshape(-1) for b in buffers]).double()  # of several dtypes, cat makes the widest


@torch.no_grad()
def spread_(buffers: list[Tensor], values: Tensor) -> None:
    """Copy a vector like that of :func:`joined` back into the buffers."""
    # One conversion for all layers, because a conversion per layer would cost more than the copies.
    if len({b.dtype for b in buffers}) == 1:
        values = values.to(buffers[0].dtype)
    parts = torch.split(values, [b.numel() for b in buffers]) if buffers else ()
    vec.copy_(buffers, [part.view(b.shape) for part, b in zip(parts, buffers, strict=True)])


def _weight(momentum: float | None, k: Tensor, count: Tensor) -> Tensor:
    """The weight of ``k`` new batches in statistics that average ``count`` earlier batches."""
    if momentum is None:  # a cumulative average
        return k / torch.clamp(count + k, min=1)
    return 1 - (1 - momentum) ** k
