"""Data parallelism: averages gradients over the ranks that divide a batch, where no wrapper does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.core import shards, vec
from lowland.core.errors import BatchError, ParameterError, UsageError
from lowland.core.lagged import read
from lowland.core.loss import divisor
from lowland.core.vec import Vec
from lowland.core.wrappers import ddps_of
from lowland.executors.mesh import collectives
from lowland.executors.modes import modules_of
from lowland.executors.norm_stats import joined, spread_
from lowland.executors.synced_norms import check_alone, check_mesh, synced_norms

if TYPE_CHECKING:
    from lowland.executors.base import Work


class Replicas:
    """The data-parallel ranks of a model: under DDP, under fully_shard, or averaged by the engine.

    DDP and fully_shard average a gradient while backward runs. DDP's ``no_sync`` prevents this for a gradient of one
    rank alone (``Probe(sync=False)``). fully_shard cannot prevent it, because no rank has all weights; there, the ranks
    with the shards of one copy of the model count as one rank.

    Args:
        model: The model, possibly wrapped in DistributedDataParallel or sharded by ``fully_shard``.
        params: The trainable parameters of the model.
        groups: Process groups of a mesh: "replicate", over which the engine averages gradients; and "probe", whose
            ranks answer different probes on the same examples.
        unaveraged: Whether there may be other ranks, over which nothing is averaged.

    Attributes:
        ddps: The DDP wrappers in the model.
        own: The groups over which the engine averages.
        apart: The groups whose ranks can have gradients of their own: the engine's and DDP's.
        groups: All groups whose ranks divide a batch.
        sharded: Whether the parameters are DTensors.
        norms: The model's layers with running statistics.
        bytes: The bytes that the engine's averages have sent.

    Raises:
        ParameterError: A SyncBatchNorm would combine statistics of probes at different weights.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Vec,
        groups: Mapping[str, dist.ProcessGroup] | None = None,
        *,
        unaveraged: bool = True,
    ) -> None:
        group, probes = (groups or {}).get("replicate"), (groups or {}).get("probe")
        self.ddps = ddps_of(model, params)
        self.sharded = not shards.ordinary(params)
        self.fsdp = [m for m in model.modules() if self.sharded and hasattr(m, "set_requires_gradient_sync")]
        self.own = [] if group is None else [group]
        self.apart = self.own + [ddp.process_group for ddp in self.ddps[:1]]
        others = shards.groups(params)
        self.groups = self.apart + [g for g in others if g not in self.apart]
        self._copies = shards.copies(params)
        self.bytes = 0
        self._params = params
        self._unsynced = False
        self._probes = [] if probes is None else [probes]
        self._checked = unaveraged
        self._model = model
        self._look(modules_of(model))

    def _look(self, modules: list[nn.Module]) -> None:
        """Find the model's normalization layers, which may have been replaced since the last step."""
        self._modules = modules
        self.norms = [m for m in self._model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
        self._synced = synced_norms(self._model) if self.groups or self._probes else []
        if self._probes:
            check_mesh(self._synced, self.groups)

    @property
    def ranks_and_sizes(self) -> list[list[int]]:
        """This process's rank and the number of ranks, for each group whose ranks divide a batch."""
        return [[dist.get_rank(group), dist.get_world_size(group)] for group in self.groups]

    def check(self, what: Mapping[str, Any], names: Sequence[str], mirrors: Sequence[dist.ProcessGroup]) -> None:
        """Refuse ranks that differ in settings, parameters or weights.

        Args:
            what: Values that must be equal on all ranks, by name.
            names: The names of the parameters.
            mirrors: Groups whose ranks must have equal weights, which no wrapper has broadcast.

        Raises:
            RankError: Ranks differ; raised on all ranks.
        """
        shapes = {f"parameter {n}": tuple(p.shape) for n, p in zip(names, self._params, strict=True)}
        device = self._params[0].device
        collectives.agree({"number of parameters": len(names), **what, **shapes}, [*mirrors, *self.groups], device)
        for group in mirrors:
            collectives.same_bits(dict(zip(names, self._params, strict=True)), group)

    def begin(self) -> None:
        """Begin a step.

        Raises:
            UsageError: The step is inside DDP's ``no_sync`` or inside ``Join``.
            ParameterError: A layer was replaced by one that would mix the statistics of a mesh's groups.
        """
        self._unsynced = False
        if (self.groups or self._probes) and (now := modules_of(self._model)) != self._modules:
            self._look(now)
        if any(getattr(getattr(ddp, "_join_config", None), "enable", False) for ddp in self.ddps):
            raise UsageError(
                "engine.backward(batch) must not run inside Join, which replaces backward passes of the model but not "
                "the engine's collectives, so that ranks would wait for each other; leave Join out, give all "
                "ranks equally many batches, such as by DistributedSampler(drop_last=True), and wrap a model that was "
                "in Join anew, because DistributedDataParallel stays as it was there"
            )
        if any(not ddp.require_backward_grad_sync for ddp in self.ddps):
            raise UsageError(
                "engine.backward(batch) must not run inside no_sync(), because what it adds to .grad is averaged over "
                "the ranks already; leave no_sync() out, also where gradients are accumulated"
            )
        for ddp in self.ddps:
            if ddp.will_sync_module_buffers():  # type: ignore[no-untyped-call]
                ddp._sync_buffers()  # type: ignore[no-untyped-call]

    @contextmanager
    def passing(self, sync: bool, all_parameters: bool) -> Iterator[None]:
        """The context of one forward and backward. DDP averages the gradient only if both arguments are true.

        Args:
            sync: Whether the gradient is averaged over the ranks.
            all_parameters: Whether the gradient is of all parameters.

        Raises:
            UsageError: ``sync`` is false, but ``fully_shard`` averages over copies of the model, or normalization
                layers combine the statistics of several ranks.
        """
        if self._copies and not sync:
            raise UsageError(
                "fully_shard must not average over the copies of the model where each is to have a gradient of its own "
                f"(mSAM, ascent_gradient='local'), but its mesh holds {self._copies} copies; give it the mesh of one "
                'copy, and the engine that of the copies: Engine(…, mesh=mesh["replicate"])'
            )
        if not sync and self.apart:
            check_alone(self._synced, [g for g in self.groups if g not in self.apart])
        self._reshard()
        with ExitStack() as stack:
            stack.callback(self._reshard)
            if not (sync and all_parameters):
                self.check_static()
                stack.enter_context(self._unaveraged())
            for ddp in self.ddps:
                # begin() has broadcast rank 0's buffers. Another broadcast would overwrite the statistics that this
                # step's passes update; conclude() averages them.
                stack.callback(setattr, ddp, "broadcast_buffers", ddp.broadcast_buffers)
                ddp.broadcast_buffers = False
            yield

    @contextmanager
    def _unaveraged(self) -> Iterator[None]:
        with ExitStack() as stack:
            for ddp in self.ddps:
                stack.enter_context(ddp.no_sync())
            yield

    def check_static(self) -> None:
        """Refuse DDP with ``static_graph=True`` if some gradients of the step are averaged differently from others.

        Raises:
            UsageError: A DDP wrapper has a static graph.
        """
        if any(getattr(ddp, "static_graph", False) for ddp in self.ddps):
            raise UsageError(
                "DistributedDataParallel must not have static_graph=True where a method takes a gradient without "
                "averaging it, or of some parameters, or a batch runs in parts, because DDP then expects every "
                "backward alike; make it with static_graph=False"
            )

    def check_covered(self) -> None:
        """Refuse ranks over which nothing is averaged; called in the first step.

        Raises:
            UsageError: There are more ranks than those that divide examples, parameters or probes.
        """
        if self._checked:
            return
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        covered = math.prod(dist.get_world_size(g) for g in self._covered())
        if ranks > covered:
            raise UsageError(
                f"gradients must be averaged over all {ranks} ranks, but the model and the mesh of this engine cover "
                f"{covered}, so that ranks would train apart; wrap the model in DistributedDataParallel or shard it "
                'by fully_shard before the engine is made, or give the engine mesh["replicate"]; for trainings that '
                "are meant to be apart, or that you average yourself, pass Engine(…, allow_unaveraged=True)"
            )
        self._checked = True

    def _covered(self) -> list[dist.ProcessGroup]:
        return [*self.groups, *(g for g in self._probes if g not in self.groups)]

    def total(self, sums: Tensor, sync: bool) -> tuple[Tensor, int]:
        """Sum a tensor over the ranks over which a gradient is averaged; return the sum and the number of ranks."""
        groups = self.groups if sync else [g for g in self.groups if g not in self.apart]
        return collectives.total(sums, groups) if groups else sums, math.prod(map(dist.get_world_size, groups))

    def micro_batch(self, last: bool) -> Any:
        """The context of one micro-batch of a pass: skip DDP's all-reduce in all but the last one."""
        if last or not self.ddps:
            return nullcontext()
        self.check_static()
        return self._unaveraged()

    def check_parts(self, count: int, device: torch.device) -> None:
        """Refuse ranks of ``fully_shard`` with different numbers of parts in a pass: each would wait for the others.

        Args:
            count: The parts of this rank.
            device: The device of the model.

        Raises:
            BatchError: The numbers differ.
        """
        if not self.sharded:
            return
        counts = torch.tensor([1.0, count, count**2], dtype=torch.float64, device=device)
        ranks, total, squares = read(collectives.total(counts, self.groups))
        if squares * ranks != total**2:
            raise BatchError(
                "with fully_shard all ranks must run a pass in equally many parts, because they gather weights "
                f"together, but rank {dist.get_rank()} has {count}, and the mean is {total / ranks:g}; give all ranks "
                "batches of one size, or equally many Parts"
            )

    def average(self, grads: list[Tensor | None], sync: bool, wrt: Sequence[bool] | None) -> list[Tensor | None]:
        """Average the gradients of a backward where no wrapper has done it, and copy views of DDP's buckets.

        Args:
            grads: The gradient of each parameter, or None.
            sync: Whether the gradient is averaged over the ranks.
            wrt: The parameters whose gradient is asked for; None for all.

        Raises:
            UsageError: No sharded parameter has a gradient.
        """
        if self.sharded and wrt is None and all(g is None for g in grads):
            raise UsageError(
                "backward left no gradient in any sharded parameter, as after set_requires_gradient_sync(False); let "
                "engine.backward(batch) synchronize: set_requires_gradient_sync(True)"
            )
        if any(ddp.gradient_as_bucket_view for ddp in self.ddps):
            grads = [None if g is None else g.clone() for g in grads]  # the next backward fills the buckets anew
        self._unsynced |= not sync
        groups = self.apart if wrt is not None else self.own
        if sync and groups:
            wanted = [True] * len(grads) if wrt is None else wrt
            # All ranks must average the same tensors, so parameters without a gradient on this rank get zeros.
            filled = [
                torch.zeros_like(p) if g is None and w else g
                for g, p, w in zip(grads, self._params, wanted, strict=True)
            ]
            self.bytes += collectives.average_([g for g in filled if g is not None], groups)
            grads = [f if g is not None else None for f, g in zip(filled, grads, strict=True)]
        return grads

    def conclude(
        self, work: Work, loss: Tensor, grad: Vec, count: Tensor | None, later: Callable[[str, Tensor], Any]
    ) -> tuple[Tensor, Vec]:
        """Complete a step on all ranks: average gradients and running statistics, and compare the ranks.

        Args:
            work: The model and the step; the step becomes finite only if it is finite on all ranks.
            loss: The loss that the plan returned.
            grad: The vector that the plan returned; averaged if the step has unsynchronized gradients.
            count: The divisor of this rank's unsynchronized losses, which is its weight in the average; None for equal
                weights.
            later: A function that stores a tensor under a name and returns the value of its previous call, or None.

        Raises:
            ParameterError: In the step before, this rank reached other parameters than other ranks.
        """
        if self._unsynced and self.apart:
            grad = vec.clone(grad)  # the plan may return a vector of its memory, which must not change in place
            if count is not None:
                sums = collectives.total(torch.stack([loss.to(count.dtype) * count, count]), self.apart)
                total, ranks = divisor(*sums), math.prod(map(dist.get_world_size, self.apart))
                vec.scale_(grad, (count * ranks / total).to(grad[0].dtype))
                loss = (sums[0] / total).to(loss.dtype)
            self.bytes += collectives.average_(grad, self.apart)
        infinite = torch.zeros((), device=work.device) if work.step.finite is None else ~work.step.finite
        mark = collectives.mark(work.step.reached)
        stats, ranks = self._stats(), math.prod(map(dist.get_world_size, self.groups))
        marks = torch.full((1,), float(mark), dtype=torch.float64, device=work.device)
        parts = [joined(stats, work.device), infinite.reshape(1).double(), marks]
        totals = torch.split(collectives.total(torch.cat(parts), self.groups), [p.numel() for p in parts])
        if stats:
            spread_(stats, totals[0] / ranks)
        if work.step.finite is not None:
            work.step.agree(totals[-2][0] == 0)
        if later("replicas", totals[-1][0] - ranks * mark) not in (None, 0):
            raise ParameterError(
                f"all ranks must reach the same parameters, but in the step before, rank {dist.get_rank()} reached "
                "others than the mean of all; let the forward use the same layers on every rank"
            )
        return loss, grad

    def _stats(self) -> list[Tensor]:
        """Running means and variances of the layers in training mode, which differ between ranks."""
        norms = [m for m in self.norms if m.training and m.track_running_stats]
        return [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]

    def _reshard(self) -> None:
        """Free the weights that fully_shard has gathered; it would reuse them after a forward without a backward."""
        for m in self.fsdp:
            m.reshard()  # type: ignore[operator]
