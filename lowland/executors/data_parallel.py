"""The ranks that divide a batch among themselves: what is averaged over them, and by whom."""

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
from lowland.core.errors import ParameterError, UsageError
from lowland.core.loss import divisor
from lowland.core.vec import Vec
from lowland.core.wrappers import ddps_of
from lowland.executors.mesh import collectives
from lowland.executors.modes import modules_of
from lowland.executors.synced_norms import check_alone, check_mesh, synced_norms

if TYPE_CHECKING:
    from lowland.executors.base import Work


class Replicas:
    """Data parallelism as it is found: DDP, fully_shard, or ranks whose gradients the engine averages itself.

    DDP and fully_shard average a gradient while backward runs. A gradient that a rank wants for itself alone
    (``Probe(sync=False)``) is kept from that by DDP's ``no_sync``; fully_shard cannot do so, because no rank has all
    weights, and there the ranks that share one copy of the model count as one.

    Args:
        model: The model, possibly wrapped in DistributedDataParallel or sharded by ``fully_shard``.
        params: Its trainable parameters.
        groups: Of a mesh: "replicate", ranks over which nobody else averages, so that the engine does it; and "probe",
            ranks that share out probes and have the same examples.
        unaveraged: Whether other ranks may exist whose gradients are not averaged.

    Attributes:
        norms: The model's layers with running statistics.

    Raises:
        ParameterError: A kind of wrapper that would average gradients which must stay apart.
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
        """Look at the model's normalization layers, which may have been exchanged since."""
        self._modules = modules
        self.norms = [m for m in self._model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
        self._synced = synced_norms(self._model) if self.groups or self._probes else []
        if self._probes:
            check_mesh(self._synced, self.groups)

    @property
    def share(self) -> list[list[int]]:
        """This rank's number, and the number of ranks, in every group that shares out examples."""
        return [[dist.get_rank(group), dist.get_world_size(group)] for group in self.groups]

    def check(self, what: Mapping[str, Any], names: Sequence[str], mirrors: Sequence[dist.ProcessGroup]) -> None:
        """Refuse ranks that were made differently.

        Args:
            what: Named values that must be the same on all ranks.
            names: The names of the parameters.
            mirrors: Groups whose ranks must hold the same weights, and whose weights no wrapper has copied.

        Raises:
            RankError: They differ; on all ranks.
        """
        shapes = {f"parameter {n}": tuple(p.shape) for n, p in zip(names, self._params, strict=True)}
        device = self._params[0].device
        collectives.agree({"number of parameters": len(names), **what, **shapes}, [*mirrors, *self.groups], device)
        for group in mirrors:
            collectives.same_bits(dict(zip(names, self._params, strict=True)), group)

    def begin(self) -> None:
        """A step begins.

        Raises:
            UsageError: Inside DDP's ``no_sync``, where a step could not be averaged.
            ParameterError: A layer was exchanged for one that would mix the statistics of a mesh's groups.
        """
        self._unsynced = False
        if (self.groups or self._probes) and (now := modules_of(self._model)) != self._modules:
            self._look(now)
        if any(getattr(getattr(ddp, "_join_config", None), "enable", False) for ddp in self.ddps):
            raise UsageError(
                "engine.backward(batch) must not run inside Join, which stands in for backward passes of the model but "
                "not for what the engine exchanges, so that ranks would wait for each other; leave Join out, give all "
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
    def passing(self, sync: bool, whole: bool) -> Iterator[None]:
        """One forward and backward, of which DDP averages a synchronized gradient of all parameters itself.

        Raises:
            UsageError: A gradient of one copy of the model is asked for where ``fully_shard`` averages over the copies,
                or of one rank where normalization layers mix the ranks.
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
            if not (sync and whole):
                self.check_static()
                stack.enter_context(self._unaveraged())
            for ddp in self.ddps:
                # A step begins with a copy of rank 0's buffers; later that would undo what ranks have seen, which is
                # averaged in the end.
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
        """Refuse DDP with a static graph, for gradients that it does not average as it averages all others.

        Raises:
            UsageError: There is one.
        """
        if any(getattr(ddp, "static_graph", False) for ddp in self.ddps):
            raise UsageError(
                "DistributedDataParallel must not have static_graph=True where a method takes a gradient without "
                "averaging it, or of some parameters, or a batch runs in parts, because DDP then expects every "
                "backward alike; make it with static_graph=False"
            )

    def check_covered(self) -> None:
        """Refuse several ranks without averaging, when a first step is taken.

        Raises:
            UsageError: There are more ranks than those that share out examples, parameters or probes.
        """
        if self._checked:
            return
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        together = math.prod(dist.get_world_size(g) for g in self._covered())
        if ranks > together:
            raise UsageError(
                f"gradients must be averaged over all {ranks} ranks, but the model and the mesh of this engine see to "
                f"{together}, so that ranks would train apart; wrap the model in DistributedDataParallel or shard it "
                'by fully_shard before the engine is made, or give the engine mesh["replicate"]; for trainings that '
                "are meant to be apart, or that you average yourself, pass Engine(…, allow_unaveraged=True)"
            )
        self._checked = True

    def _covered(self) -> list[dist.ProcessGroup]:
        return [*self.groups, *(g for g in self._probes if g not in self.groups)]

    def total(self, sums: Tensor, sync: bool) -> tuple[Tensor, int]:
        """Sums over the ranks over which a gradient is averaged, by a wrapper or by the engine, and their number."""
        groups = self.groups if sync else [g for g in self.groups if g not in self.apart]
        return collectives.total(sums, groups) if groups else sums, math.prod(map(dist.get_world_size, groups))

    def part(self, last: bool) -> Any:
        """Skip DDP's all-reduce in all micro-batches but the last one of a pass."""
        if last or not self.ddps:
            return nullcontext()
        self.check_static()
        return self._unaveraged()

    def taken(self, grads: list[Tensor | None], sync: bool, wrt: Sequence[bool] | None) -> list[Tensor | None]:
        """The gradients that backward left, averaged where that is left to do and safe from DDP's buckets."""
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
            # Every rank averages the same tensors, also one that no example of its own has reached.
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
        """The step's loss and gradient, averaged where they are not yet, once all ranks agree on what has happened.

        Args:
            work: What the step has met on this rank; it becomes finite only if it was so on all.
            loss: What the plan returned.
            grad: What the plan returned; averaged once if gradients of a single rank are in it.
            count: What this rank's unsynchronized losses are divided by, which is its weight in the average; None
                where all ranks weigh the same.
            later: Sends a number off and gives the last one, so that nobody waits.

        Raises:
            ParameterError: In the step before, this rank reached other parameters than the others.
        """
        if self._unsynced and self.apart:
            grad = vec.clone(grad)  # it may be a vector in memory
            if count is not None:
                both = collectives.total(torch.stack([loss.to(count.dtype) * count, count]), self.apart)
                whole, ranks = divisor(*both), math.prod(map(dist.get_world_size, self.apart))
                vec.scale_(grad, (count * ranks / whole).to(grad[0].dtype))
                loss = (both[0] / whole).to(loss.dtype)
            self.bytes += collectives.average_(grad, self.apart)
        lost = torch.zeros((), device=work.device) if work.finite is None else ~work.finite
        mark = collectives.mark(work.reached)
        stats, ranks = self._stats(), math.prod(map(dist.get_world_size, self.groups))
        marks = torch.full((1,), float(mark), dtype=torch.float64, device=work.device)
        parts = [*(b.reshape(-1).double() for b in stats), lost.reshape(1).double(), marks]
        sums = torch.split(collectives.total(torch.cat(parts), self.groups), [p.numel() for p in parts])
        for b, there in zip(stats, sums, strict=False):
            b.copy_((there / ranks).view(b.shape))
        if work.finite is not None:
            work.finite = sums[-2][0] == 0
        if later("replicas", sums[-1][0] - ranks * mark) not in (None, 0):
            raise ParameterError(
                f"all ranks must reach the same parameters, but in the step before, rank {dist.get_rank()} reached "
                "others than the mean of all; let the forward use the same layers on every rank"
            )
        return loss, grad

    def _stats(self) -> list[Tensor]:
        """Running means and variances of the layers in training mode, which saw other examples on every rank."""
        seen = [m for m in self.norms if m.training and m.track_running_stats]
        return [b for m in seen for b in (m.running_mean, m.running_var) if b is not None]

    def _reshard(self) -> None:
        """Let fully_shard gather weights anew: after a forward without backward it would keep the gathered ones."""
        for m in self.fsdp:
            m.reshard()  # type: ignore[operator]
