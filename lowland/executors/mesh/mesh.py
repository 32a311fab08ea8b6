"""The executor that divides probes over groups of devices."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core.errors import ArgumentError, BatchError, ParameterError, UsageError
from lowland.core.lagged import Lagged
from lowland.core.probe import Probe, Reading
from lowland.core.transfer import scalar, to_device
from lowland.core.vec import Vec
from lowland.executors import modes
from lowland.executors.base import Executor, Work
from lowland.executors.local import Local, Pass
from lowland.executors.mesh import collectives
from lowland.executors.mesh.exchange import Exchange, all_gather
from lowland.executors.mesh.messages import Messages
from lowland.executors.mesh.shared_memory import SharedMemory, common_memory, needed, wanted
from lowland.executors.norm_stats import RunningStats


class Mesh(Executor):
    """Answers the probes of one tuple at once, one on each group of a mesh, and gives every group all answers.

    One exchange shares gradients, losses and the running statistics that probes have updated. All ranks get the same
    bits: replicas stay equal, and any rank can evaluate or save. Every group answers a single probe, and the reading of
    the first group counts.

    Every group must be given the same batches.

    Args:
        group: The process group of a mesh dimension: one rank of every group of devices.
        inner: The executor that answers a probe inside a group; :class:`Local` by default.
        bucket: The approximate size of a bucket in bytes, where the exchange uses messages; see :class:`Messages`.
        shared_memory: Exchange gradients through shared memory where all ranks of the group run on one host's CPU.
            ``LOWLAND_SHARED_MEMORY=0`` in the environment forbids it, too.

    Attributes:
        width: The number of groups, which is how many probes are answered at once.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        inner: Executor | None = None,
        *,
        bucket: int | None = None,
        shared_memory: bool = True,
    ) -> None:
        self.group, self.inner, self.bucket, self.shared_memory = group, inner or Local(), bucket, shared_memory
        self.rank, self.width = dist.get_rank(group), dist.get_world_size(group)
        self._exchange: Exchange | None = None
        self._lagged = Lagged()
        self._sums: list[Tensor] = []  # of the batch's entries, one on each device
        self._most = 0
        self._warned = False

    @property
    def sent(self) -> int:
        """Bytes of gradients that this rank has sent so far."""
        return 0 if self._exchange is None else self._exchange.bytes

    @property
    def waited(self) -> float:
        """Seconds that this rank has waited for exchanges after its backward; NaN on a GPU."""
        return 0.0 if self._exchange is None else self._exchange.waited

    def begin(self, batch: Any) -> None:
        """A step on ``batch`` begins."""
        self._most = 0
        by_device: dict[torch.device, list[Tensor]] = {}
        for t in pytree.tree_leaves(batch):
            if isinstance(t, Tensor) and not t.is_complex():
                by_device.setdefault(t.device, []).append(t.sum(dtype=torch.float64))
        self._sums = [torch.stack(sums).sum() for sums in by_device.values()]

    def end(self) -> None:
        """The step is complete."""
        if self._warned or self._most >= self.width:
            return
        self._warned = True
        if self._most == 1:
            warnings.warn(
                f"the method asked for one probe at a time, so all {self.width} groups of the mesh computed the same; "
                "SAMPa, AsyncSAM and mSAM ask for several at once, and other methods want these devices for data "
                "parallelism",
                stacklevel=2,
            )
        elif self._most:
            warnings.warn(
                f"the method asked for {self._most} probes at once, which keeps {self._most} of the mesh's "
                f"{self.width} groups busy; give the probe dimension that size and the rest to data parallelism",
                stacklevel=2,
            )

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """See :meth:`Executor.run`."""
        readings: list[Reading] = []
        for wave, seeds in self._waves(work, probes):
            with self._shared(work, wave, seeds, early=True) as (number, gather):
                gather(self.inner.run(work, (wave[number],))[0], readings)
        return tuple(readings)

    def passes(
        self, work: Work, probes: tuple[Probe, ...], on_error: Any = None
    ) -> Generator[Pass, None, tuple[Reading, ...]]:
        """See :meth:`Executor.passes`: this rank's caller runs one probe of every wave."""
        readings: list[Reading] = []
        for wave, seeds in self._waves(work, probes):
            if any(p.batch is None for p in wave):
                raise UsageError("a mesh must know the batch; call engine.passes(batch)")
            # The caller may run backward in parts, so gradients are sent after the pass.
            with self._shared(work, wave, seeds, early=False) as (number, gather):
                current = Pass(work, wave[number], on_error=on_error)
                yield current
                gather(current.answer(), readings)
        return tuple(readings)

    def _waves(self, work: Work, probes: tuple[Probe, ...]) -> Iterator[tuple[tuple[Probe, ...], list[int]]]:
        """Yield waves of at most ``width`` probes with their seeds, which are the seeds that one device uses."""
        self._most = max(self._most, len(probes))
        if any((p.grad, p.wrt) != (probes[0].grad, probes[0].wrt) for p in probes):
            raise UsageError(
                "on a mesh, the probes of one tuple must all want a gradient or none, and of the same parameters, "
                "because every group answers one of them and all must know what was reached; ask for the others apart"
            )
        seeds = work.seeds(len(probes))
        for start in range(0, len(probes), self.width):
            yield probes[start : start + self.width], seeds[start : start + self.width]

    @contextmanager
    def _shared(
        self, work: Work, wave: tuple[Probe, ...], seeds: list[int], *, early: bool
    ) -> Iterator[tuple[int, Any]]:
        """Yield the index of this rank's probe and a function that appends the readings of all ranks."""
        exchange, number = self._exchanging(work.params), self.rank % len(wave)
        own = wave[number]
        for probe in wave:
            if probe is not own:
                probe.discard_at()
        statistics = RunningStats(work, wave)
        alone = not work.replicas.ddps and not work.replicas.sharded and not work.replicas.own
        early = early and alone and not modes.compiled_backward()
        if early and own.grad and work.batches.in_one(own.batch, work.micro_batch):
            exchange.arm(work.scale(), len(wave))

        def gather(reading: Reading, readings: list[Reading]) -> None:
            readings += self._gather(work, wave, reading, statistics)

        # A probe asked alone runs in all groups, which change numbers alike.
        written = work.buffers.written + (work.buffers.numbers if len(wave) > 1 else [])
        if self.width > 1 and written:
            raise UsageError(
                "on a probe mesh, forward must not write buffers beside running statistics, because the groups would "
                f"drift apart, but writes {', '.join(written[:3])}; use data parallelism in place of mesh="
            )
        try:
            # Probes of different sizes draw different amounts of random numbers, so each one has its own stream.
            with modes.branch(work.device, seeds[number]) if seeds else nullcontext():
                yield number, gather
        finally:
            exchange.disarm()

    def _gather(self, work: Work, wave: tuple[Probe, ...], own: Reading, statistics: RunningStats) -> list[Reading]:
        exchange, grad = self._exchanging(work.params), own.grad
        if grad is not None:
            exchange.give(grad, len(wave))
        sizes = [work.batches.known_size(p.batch) for p in wave]
        with_losses = own.losses is not None and None not in sizes
        room = max(n or 0 for n in sizes)
        losses = own.losses if own.losses is not None and with_losses else own.loss.new_zeros(room)
        count = scalar(0.0 if own.divisor is None else own.divisor, torch.float64, own.loss.device)
        finite = torch.ones_like(own.loss) if work.step.finite is None else work.step.finite.to(own.loss.dtype)
        mark = 0 if any(p.wrt is not None for p in wave) else collectives.mark(work.step.reached)
        small = torch.cat(
            [
                own.loss.reshape(1).double(),
                finite.reshape(1).double(),
                self._sum(own.loss.device).reshape(1),
                *(own.loss.new_full((1,), n, dtype=torch.float64) for n in (mark, exchange.given, exchange.taken)),
                count.reshape(1),
                torch.nn.functional.pad(losses.double(), (0, room - len(losses))),
                statistics.contribution(self.rank),
            ]
        )
        everyone = small.new_empty(self.width * len(small))
        exchange.wait([all_gather(everyone, small, self.group)])
        rows = everyone.view(self.width, -1)
        exchange.check(rows[:, 4], rows[:, 5])
        vectors = None if grad is None else exchange.take(grad, len(wave))
        self._compare(rows)
        if work.step.finite is not None:
            work.step.agree(rows[:, 1].min() > 0)
        statistics.combine(rows[:, 7 + room :], self.rank)
        readings = []
        for i in range(len(wave)):
            if i == self.rank and len(wave) > 1:
                own_losses = losses if with_losses else None
                readings.append(Reading(own.loss, own.grad, own_losses, own.divisor, own.aux, own.reached))
                continue
            size, loss = sizes[i], rows[i, 0].to(own.loss.dtype)
            losses_of_probe = rows[i, 7 : 7 + (size or 0)].to(own.loss.dtype) if with_losses else None
            divisor: Tensor | float | None = rows[i, 6] if isinstance(own.divisor, Tensor) else size
            divisor = None if own.divisor is None else divisor
            grad_of_probe = None if vectors is None else vectors[i]
            aux = own.aux if len(wave) == 1 else None
            # `reached` is equal on all groups, see _compare.
            readings.append(Reading(loss, grad_of_probe, losses_of_probe, divisor, aux, own.reached))
        return readings

    def _sum(self, device: torch.device) -> Tensor:
        """The sum of all entries of the batch, which groups compare, shape ``()``."""
        total = torch.zeros((), dtype=torch.float64, device=device)
        for part in self._sums:
            total = total + to_device(part, device)
        return total

    def _exchanging(self, params: Vec) -> Exchange:
        if self._exchange is None:
            memory = None
            if params[0].device.type == "cpu":
                use = self.shared_memory and wanted(params)
                memory = common_memory(self.group, needed(params, self.width) if use else 0)
            self._exchange = (
                Messages(params, self.group, bucket=self.bucket)
                if memory is None
                else SharedMemory(params, self.group, memory)
            )
        return self._exchange

    def _compare(self, rows: Tensor) -> None:
        """Check one step later that all groups had the same batch and reached the same parameters."""
        earlier = self._lagged.swap("rows", rows[:, 2:4])
        if earlier is None:
            return
        own = earlier[self.rank]
        for rank, other in enumerate(earlier):
            if abs(other[0] - own[0]) > 1e-9 * max(abs(other[0]), abs(own[0]), 1.0):
                raise BatchError(
                    "all groups of a mesh must be given the same batches, but in the step before, those of groups "
                    f"{self.rank} and {rank} differed (their entries sum up to {own[0]:.9g} and {other[0]:.9g}); give "
                    "both the same sampler: num_replicas and rank of the data dimension, one seed"
                )
            if other[1] != own[1]:
                raise ParameterError(
                    "all groups of a mesh must reach the same parameters, but in the step before, groups "
                    f"{self.rank} and {rank} reached different ones; let the forward use the same layers on every rank"
                )


def along(mesh: Any) -> dict[str, dist.ProcessGroup]:
    """The process groups of a mesh by kind: "probe" divides probes, "replicate" averages gradients.

    Args:
        mesh: A DeviceMesh. The engine averages over the dimension "replicate"; the other one divides probes.

    Raises:
        ArgumentError: It is no DeviceMesh, or has dimensions that belong to a wrapper of the model.
    """
    if not hasattr(mesh, "get_group") or not hasattr(mesh, "ndim"):
        raise ArgumentError(
            f'mesh must be a torch DeviceMesh, but is {mesh!r}; make one: init_device_mesh("cuda", (2,), '
            'mesh_dim_names=("probe",))'
        )
    names = mesh.mesh_dim_names or ("probe",) * mesh.ndim
    kinds = ["replicate" if name == "replicate" else "probe" for name in names]
    if len(set(kinds)) < len(kinds):
        raise ArgumentError(
            f'mesh must have one dimension for probes and at most one more, "replicate", but has {names}; give the '
            'others to the model, as DistributedDataParallel(model, process_group=mesh["data"].get_group()) or '
            'fully_shard(model, mesh=mesh["data"]), and pass mesh["probe"] here'
        )
    return {kind: mesh.get_group(dim) for dim, kind in enumerate(kinds)}
