"""One of the two processes that ``lowland bench parallel`` and ``lowland bench comm`` measure.

Started as ``python -m lowland.bench.two_processes.worker RANK MEETING PATIENCE``, see
:mod:`lowland.bench.two_processes.pair`. The process takes orders as JSON lines on standard input and answers each with
JSON lines on what was its standard output. Both ranks get the same orders, and keep in step by barriers: a rank that
has nothing to do in a variant sleeps in the next barrier.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import lowland
from lowland.bench.overhead import loss_fn
from lowland.bench.two_processes.driver import RANKS, Case
from lowland.executors.mesh.mesh import Mesh
from lowland.executors.mesh.messages import BUCKET

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to take a step.

    Attributes:
        step: Takes it.
        alone: Rank 0 takes it, and the other one rests.
        sent: Bytes that this rank has given into exchanges of gradients so far.
        waited: Seconds for which its exchanges were not hidden behind backward so far; None where nobody counts them.
    """

    step: Callable[[], None]
    alone: bool = False
    sent: Callable[[], int] = lambda: 0
    waited: Callable[[], float] | None = None


def variants(case: Case, rank: int, *, apart: bool) -> dict[str, Variant]:
    """What ``bench parallel`` compares, in the order in which the steps of a round are taken.

    Args:
        case: Model and batch.
        rank: Of this process.
        apart: There is a network between the ranks, which shared memory would pass by.
    """
    batch = case.data()
    half = (batch[0].chunk(RANKS)[rank], batch[1].chunk(RANKS)[rank])
    size = case.bytes()
    found = {
        "plain": _bare(case.build(), batch, alone=True),
        "sam": _ours(lowland.SAM(), case.build(), batch, alone=True),
        "plain-twice": _bare(case.build(), batch),
        "dp-plain": _bare(_ddp(case.build()), half, reduced=size),
        "dp-sam": _ours(lowland.SAM(), _ddp(case.build()), half, reduced=size),
        "sampa": _ours(lowland.SAMPa(), case.build(), batch, mesh=_mesh(shared_memory=not apart)),
    }
    if not apart:
        found["sampa-messages"] = _ours(lowland.SAMPa(), case.build(), batch, mesh=_mesh(shared_memory=False))
    return found


def _mesh(*, shared_memory: bool) -> Mesh:
    assert dist.group.WORLD is not None
    return Mesh(dist.group.WORLD, shared_memory=shared_memory)


def _ddp(model: nn.Module) -> nn.Module:
    # As good as it gets: buckets as large as those of lowland's own exchange, so that its all-reduce hides as well, in
    # which the gradients lie, and no broadcast of BatchNorm statistics, which the engine averages anyway. (The argument
    # for it is deprecated.)
    wrapped = DistributedDataParallel(model, bucket_cap_mb=BUCKET / 2**20, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False
    return wrapped


def _base(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)


def _bare(model: nn.Module, batch: Batch, *, reduced: int = 0, alone: bool = False) -> Variant:
    """A step without lowland, with ``reduced`` bytes in an all-reduce."""
    optimizer = _base(model)
    taken = 0

    def step() -> None:
        nonlocal taken
        taken += 1
        optimizer.zero_grad()
        loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Variant(step, alone, sent=lambda: taken * reduced)


def _ours(
    method: lowland.Method,
    model: nn.Module,
    batch: Batch,
    *,
    mesh: Mesh | None = None,
    reduced: int = 0,
    alone: bool = False,
) -> Variant:
    optimizer = _base(model)
    engine = lowland.Engine(method, model, optimizer, loss_fn, executor=mesh, allow_unaveraged=alone or mesh is None)

    def step() -> None:
        optimizer.zero_grad()
        engine.backward(batch)
        optimizer.step()

    def sent() -> int:
        # DDP averages inside backward, where the executor does not see it: the gradients it averaged, times their size.
        return engine.cost.bytes + engine.cost.reduces * reduced

    return Variant(step, alone, sent, None if mesh is None else lambda: mesh.waited)


def take_round(steps: dict[str, Variant], rank: int, device: str, number: int = 0) -> dict[str, Any]:
    """Let every variant take one step.

    Args:
        steps: The variants.
        rank: Of this process.
        device: The network device whose traffic is counted.
        number: Of the round; another variant begins each time, so that none always follows the same one.

    Returns:
        By variant ``seconds`` from the barrier to the end of the step, ``bytes`` given into exchanges, ``wire``: bytes
        that left through the device until both were ready for the next step, and ``waited`` seconds.
    """
    found: dict[str, Any] = {"seconds": {}, "bytes": {}, "wire": {}, "waited": {}}
    order = list(steps)
    for name in order[number % len(order) :] + order[: number % len(order)]:
        variant, before = steps[name], traffic(device)
        dist.barrier()
        if rank == 0 or not variant.alone:
            sent = variant.sent()
            waited = variant.waited() if variant.waited is not None else 0.0
            start = time.perf_counter()
            variant.step()
            found["seconds"][name] = time.perf_counter() - start
            found["bytes"][name] = variant.sent() - sent
            if variant.waited is not None:
                found["waited"][name] = variant.waited() - waited
        dist.barrier()  # a step that ends early here must not begin the next one, nor its traffic be missed
        after = traffic(device)
        found["wire"][name] = None if before is None or after is None else after - before
    return {what: {name: each[name] for name in steps if name in each} for what, each in found.items()}


def traffic(device: str) -> int | None:
    """Bytes that have left through a network device since it exists; None where Linux is not there to count them."""
    try:
        with open("/proc/net/dev") as lines:
            counts = next(line.split(":", 1)[1] for line in lines if line.strip().startswith(f"{device}:"))
    except (OSError, StopIteration):
        return None
    return int(counts.split()[8])


def serve(rank: int, orders: IO[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Carry out orders until there are no more.

    Args:
        rank: Of this process.
        orders: JSON lines: ``{"case": {...}, "apart": false}`` sets up a case (see :func:`variants`),
            ``{"rounds": n}`` takes rounds on it.
        answer: Takes one answer for a case, and one for each round.
    """
    device = os.environ["GLOO_SOCKET_IFNAME"]
    steps: dict[str, Variant] = {}
    for line in orders:
        order = json.loads(line)
        if "case" in order:
            case = Case(**order["case"])
            steps = variants(case, rank, apart=order["apart"])
            answer({"parameters": case.bytes()})
        for number in range(order.get("rounds", 0)):
            answer(take_round(steps, rank, device, number))


def main() -> int:
    """Join the other rank, and serve.

    Returns:
        The exit code.
    """
    rank, meeting, patience = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    # Answers keep standard output to themselves: gloo greets there, too.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=out, flush=True)

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=RANKS, timeout=timedelta(seconds=patience)
        )
        serve(rank, sys.stdin, answer)
    except Exception:
        answer({"error": traceback.format_exc()})
        return 1
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
