"""Running statistics of BatchNorm and InstanceNorm: left alone, updated on several ranks, recomputed."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from lowland.core.batch import Parts
from lowland.core.errors import ArgumentError, UsageError
from lowland.core.probe import Probe
from lowland.executors.modes import modules_of

if TYPE_CHECKING:
    from lowland.executors.base import Work

# In training mode these forwards use the batch's statistics and, without the flag, touch no buffer.
_HEEDS_FLAG = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


@torch.no_grad()
def refresh_stats(
    model: nn.Module, loader: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> None:
    """Recompute all running statistics at the current weights, as plain averages over the batches.

    Args:
        model: The model; called with every batch's inputs, in training mode, without gradients. Its modes
            are put back afterwards.
        loader: Batches: tensors of inputs, or tuples or lists whose first entry they are; any object with ``forward``.
        forward: ``(model, batch) -> anything``, which runs the model on a batch; None runs ``model(inputs)``.

    Warns:
        UserWarning: The model has no running statistics, so there is nothing to do and the loader is not read.

    Raises:
        ArgumentError: There is no batch; ``forward`` is None and a batch is neither tensor, tuple nor list; or
            ``forward`` cannot be called. Then, as after any exception, the statistics are as they were.
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
    rates = [m.momentum for m in norms]
    saved = [[b.clone() for b in m.buffers(recurse=False)] for m in norms]
    seen = False
    try:
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # the plain average over all batches, in place of a moving one
        model.train()
        for batch in loader:
            _run(model, batch, forward)
            seen = True
        if not seen:
            raise ArgumentError("loader must give at least one batch, but gave none; pass batches of training inputs")
    except BaseException:
        for m, buffers in zip(norms, saved, strict=True):
            for buffer, before in zip(m.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(before)
        raise
    finally:
        for m, rate in zip(norms, rates, strict=True):
            m.momentum = rate
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
    plain = isinstance(inputs, Mapping | str | bytes | int | float | tuple | list | type(None))
    if isinstance(inputs, Tensor) or not (plain or type(inputs).__module__ == "numpy"):
        return inputs
    raise ArgumentError(
        f"loader must give tensors of inputs, or tuples that begin with one, but gave a {type(batch).__name__}; say "
        'how it runs: refresh_stats(model, loader, forward=lambda model, batch: model(batch["inputs"]))'
    )


def heeds_flag(m: nn.Module) -> bool:
    """Whether it is a layer that, told not to track statistics, uses the batch's own and touches no buffer."""
    return isinstance(m, _NormBase) and type(m).forward in _HEEDS_FLAG and "forward" not in vars(m)


@contextmanager
def frozen_stats(model: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are, though BatchNorm in training mode still uses the batch's own.

    Torch's own BatchNorm is told not to track, which costs nothing; all else that forward writes is put back by
    :class:`lowland.executors.buffers.Buffers`.
    """
    norms = [m for m in modules_of(model) if isinstance(m, _NormBase) and heeds_flag(m)]
    norms = [m for m in norms if m.training and m.track_running_stats]
    try:
        for m in norms:
            m.track_running_stats = False
        yield
    finally:
        for m in norms:
            m.track_running_stats = True


class RunningStats:
    """The running statistics that the probes of a wave update, and how they add up."""

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

    def given(self, rank: int) -> Tensor:
        """What :meth:`settle` is to get from this rank: :meth:`flat`, or as many zeros if nobody will look at them."""
        if self.updated and rank not in self.updated:
            size = sum(b.numel() for b in self.buffers) + len(self.counts)
            return torch.zeros(size, dtype=torch.float64, device=self.device)
        return self.flat()

    def flat(self) -> Tensor:
        """The statistics now, as doubles: means and variances, then counts of updates."""
        if not self.buffers:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        found = torch.cat(self.buffers).double()
        # Counts apart: they are not exact in single precision.
        return torch.cat([found, torch.stack(self.counts).double()]) if self.counts else found

    @torch.no_grad()
    def settle(self, rows: Tensor, rank: int) -> None:
        """What the statistics would be, had one device answered all probes in their order.

        Args:
            rows: Those of every rank of the group.
            rank: This one.
        """
        if not self.buffers:
            return
        if self.before is not None:
            self._set(self._sum(self.before, rows))
        elif self.updated[0] != rank:
            self._set(rows[self.updated[0]])

    def _set(self, row: Tensor) -> None:
        sizes = [b.numel() for b in self.buffers]
        values, counts = torch.split(row, [sum(sizes), len(self.counts)])
        # Each kind in one conversion: for every layer they would cost more than the copies.
        if len({b.dtype for b in self.buffers}) == 1:
            values = values.to(self.buffers[0].dtype)
            torch._foreach_copy_(self.buffers, list(torch.split(values, sizes)))
        else:  # in one call, older versions of torch mix up dtypes on a GPU
            for buffer, value in zip(self.buffers, torch.split(values, sizes), strict=True):
                buffer.copy_(value)
        if self.counts:
            torch._foreach_copy_(self.counts, list(counts.to(self.counts[0].dtype).unbind()))

    def _sum(self, before: Tensor, rows: Tensor) -> Tensor:
        """Statistics after the updates of all probes, each of which is known on top of ``before`` alone."""
        now, place, number = before.clone(), 0, sum(b.numel() for b in self.buffers)
        for norm in self.norms:
            width = sum(b.numel() for b in (norm.running_mean, norm.running_var) if b is not None)
            here, place = slice(place, place + width), place + width
            start = count = before[number]
            for i in self.updated:
                k = rows[i, number] - start  # how often the probe came to the layer: with micro-batches more than once
                moved = rows[i, here] - before[here]
                first, share = (_share(norm.momentum, k, n) for n in (start, count))
                # The batches pull the statistics towards values of their own, by a share that is known.
                seen = before[here] + moved / torch.where(first == 0, torch.ones_like(first), first)
                now[here] += (seen - now[here]) * share
                count = count + k
            now[number] = count
            number += 1
        return now


def _share(momentum: float | None, k: Tensor, count: Tensor) -> Tensor:
    """How far ``k`` batches move statistics that have seen ``count`` of them."""
    if momentum is None:  # a cumulative average
        return k / torch.clamp(count + k, min=1)
    return 1 - (1 - momentum) ** k
