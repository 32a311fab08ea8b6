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
from torch.nn.parallel import DistributedDataParallel

from lowland import collectives, shards, vec
from lowland.errors import ParameterError, UsageError
from lowland.loss import divisor
from lowland.vec import Vec

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
        group: Ranks over which nobody else averages; the engine does it. None: there are none.

    Attributes:
        norms: The model's layers with running statistics.

    Raises:
        ParameterError: A kind of wrapper that would average gradients which must stay apart.
    """

    def __init__(self, model: nn.Module, params: Vec, group: dist.ProcessGroup | None = None) -> None:
        self.ddp = ddp_of(model)
        self.sharded = not shards.ordinary(params)
        self.fsdp = [m for m in model.modules() if self.sharded and hasattr(m, "set_requires_gradient_sync")]
        self.own = [] if group is None else [group]
        self.apart = self.own + ([self.ddp.process_group] if self.ddp is not None else [])
        others = shards.groups(params)
        self.groups = self.apart + [g for g in others if g not in self.apart]
        self._copies = shards.copies(params)
        self.bytes = 0
        self._params = params
        self.norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
        self._unsynced = False

    def check(self, what: Mapping[str, Any], names: Sequence[str], mirrors: Sequence[dist.ProcessGroup]) -> None:
        """Refuse ranks that were made differently.

        Args:
            what: Named values that must be the same on all ranks.
            names: The names of the parameters.
            mirrors: Groups whose ranks must also hold the same weights, and nobody has seen to that.

        Raises:
            RankError: They differ; on all ranks.
        """
        shapes = {f"parameter {n}": tuple(p.shape) for n, p in zip(names, self._params, strict=True)}
        collectives.agree({"number of parameters": len(names), **what, **shapes}, [*mirrors, *self.groups])
        for group in mirrors:
            collectives.same_bits(dict(zip(names, self._params, strict=True)), group)

    def begin(self) -> None:
        """A step begins.

        Raises:
            UsageError: Inside DDP's ``no_sync``, where a step could not be averaged.
        """
        self._unsynced = False
        if self.ddp is not None and not self.ddp.require_backward_grad_sync:
            raise UsageError(
                "engine.backward(batch) must not run inside no_sync(), because what it adds to .grad is averaged over "
                "the ranks already; leave no_sync() out, also where gradients are accumulated"
            )
        if self.ddp is not None and self.ddp.will_sync_module_buffers():  # type: ignore[no-untyped-call]
            self.ddp._sync_buffers()  # type: ignore[no-untyped-call]

    @contextmanager
    def passing(self, sync: bool, whole: bool) -> Iterator[None]:
        """One forward and backward, of which DDP averages a synchronized gradient of all parameters itself.

        Raises:
            UsageError: A gradient of one copy of the model is asked for where ``fully_shard`` averages over the copies.
        """
        if self._copies and not sync:
            raise UsageError(
                "fully_shard must not average over the copies of the model where each is to have a gradient of its own "
                f"(mSAM, ascent_gradient='local'), but its mesh holds {self._copies} copies; give it the mesh of one "
                'copy, and the engine that of the copies: Engine(…, mesh=mesh["replicate"])'
            )
        self._reshard()
        with ExitStack() as stack:
            stack.callback(self._reshard)
            if self.ddp is not None:
                if not (sync and whole):
                    stack.enter_context(self.ddp.no_sync())
                # A step begins with a copy of rank 0's buffers; later that would undo what ranks have seen, which is
                # averaged in the end.
                stack.callback(setattr, self.ddp, "broadcast_buffers", self.ddp.broadcast_buffers)
                self.ddp.broadcast_buffers = False
            yield

    def total(self, sums: Tensor, sync: bool) -> tuple[Tensor, int]:
        """Sums over the ranks over which a gradient is averaged, by a wrapper or by the engine, and their number."""
        groups = self.groups if sync else [g for g in self.groups if g not in self.apart]
        return collectives.total(sums, groups) if groups else sums, math.prod(map(dist.get_world_size, groups))

    def part(self, last: bool) -> Any:
        """Backward of a part of a pass: DDP averages with the last one what all have summed up."""
        return nullcontext() if last or self.ddp is None else self.ddp.no_sync()

    def taken(self, grads: list[Tensor | None], sync: bool, wrt: Sequence[bool] | None) -> list[Tensor | None]:
        """The gradients that backward left, averaged where that is left to do and safe from DDP's buckets."""
        if self.sharded and wrt is None and all(g is None for g in grads):
            raise UsageError(
                "backward left no gradient in any sharded parameter, as after set_requires_gradient_sync(False); let "
                "engine.backward(batch) synchronize: set_requires_gradient_sync(True)"
            )
        if self.ddp is not None and self.ddp.gradient_as_bucket_view:
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


def ddp_of(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper that averages gradients during backward, if there is one.

    Raises:
        ParameterError: It is not the outermost one, or another kind.
    """
    outer = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    for m in model.modules():
        if isinstance(m, DistributedDataParallel) and m is not outer:
            raise ParameterError(
                "model must be wrapped in DistributedDataParallel as a whole, but only a part of it is; wrap the model "
                "itself: DistributedDataParallel(model)"
            )
        if type(m).__name__ == "FullyShardedDataParallel":
            raise ParameterError(
                "model must not be wrapped in FullyShardedDataParallel, whose flat parameters hide the tensors a "
                "method works on; use torch.distributed.fsdp.fully_shard(model)"
            )
    return outer if isinstance(outer, DistributedDataParallel) else None
