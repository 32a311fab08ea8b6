"""One of the two processes that ``lowland bench parallel`` and ``lowland bench comm`` measure.

Started as ``python -m lowland.bench.two_processes.worker RANK MEETING PATIENCE``, see
:mod:`lowland.bench.two_processes.pair`. The process takes orders as JSON lines on standard input and answers each order
with JSON lines on the original standard output. Both ranks get the same orders and stay synchronized by barriers. A
rank that rests during a variant waits at the next barrier.
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
from lowland.bench.two_processes import waiting
from lowland.bench.two_processes.case import RANKS, Case
from lowland.executors.mesh.mesh import Mesh
from lowland.executors.mesh.messages import BUCKET

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to train, measured step by step.

    Attributes:
        step: Takes one training step.
        alone: Only rank 0 takes the step; rank 1 rests.
        sent: Returns the total bytes that this rank has sent in gradient exchanges.
        waited: Returns the seconds of every wait of this rank, since the last call, for an exchange that backward did
            not hide; None if the variant exchanges nothing.
    """

    step: Callable[[], None]
    alone: bool = False
    sent: Callable[[], int] = lambda: 0
    waited: Callable[[], list[float]] | None = None


def variants(case: Case, rank: int, *, apart: bool) -> dict[str, Variant]:
    """The variants by name, in the order of the steps of a round.

    Args:
        case: The model and the batch.
        rank: The rank of this process.
        apart: Whether a simulated network separates the ranks; if so, no variant uses shared memory.
    """
    batch = case.data()
    half = (batch[0].chunk(RANKS)[rank], batch[1].chunk(RANKS)[rank])
    size = case.bytes()
    by_name = {
        "plain": _bare(case.build(), batch, alone=True),
        "sam": _ours(lowland.SAM(), case.build(), batch, alone=True),
        "plain-twice": _bare(case.build(), batch),
        "half-twice": _bare(case.build(), half),
        "dp-plain": _bare(_ddp(case.build()), half, reduced=size),
        "dp-sam": _ours(lowland.SAM(), _ddp(case.build()), half, reduced=size),
        "sampa": _ours(lowland.SAMPa(), case.build(), batch, mesh=_mesh(shared_memory=not apart)),
    }
    if not apart:
        by_name["sampa-messages"] = _ours(lowland.SAMPa(), case.build(), batch, mesh=_mesh(shared_memory=False))
    return by_name


def _mesh(*, shared_memory: bool) -> Mesh:
    assert dist.group.WORLD is not None
    return Mesh(dist.group.WORLD, shared_memory=shared_memory)


def _ddp(model: nn.Module) -> nn.Module:
    # The fastest settings of DDP: the buckets have the size of lowland's buckets, so that the all-reduce overlaps with
    # backward equally well; the gradients are views into the buckets; and DDP does not broadcast the BatchNorm
    # statistics, because the engine averages them. (The constructor's argument for broadcasts is deprecated.)
    wrapped = DistributedDataParallel(model, bucket_cap_mb=BUCKET / 2**20, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False
    return wrapped


def _base(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)


def _bare(model: nn.Module, batch: Batch, *, reduced: int = 0, alone: bool = False) -> Variant:
    """A variant without lowland, whose step sends ``reduced`` bytes in an all-reduce."""
    optimizer = _base(model)
    loss_function = waiting.watched if reduced else loss_fn
    steps_taken = 0

    def step() -> None:
        nonlocal steps_taken
        steps_taken += 1
        optimizer.zero_grad()
        loss_function(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return Variant(step, alone, lambda: steps_taken * reduced, waiting.taken if reduced else None)


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
    loss_function = waiting.watched if reduced else loss_fn
    unaveraged = alone or mesh is None
    engine = lowland.Engine(method, model, optimizer, loss_function, executor=mesh, allow_unaveraged=unaveraged)

    def step() -> None:
        optimizer.zero_grad()
        engine.backward(batch)
        optimizer.step()

    def sent() -> int:
        # The executor cannot count DDP's all-reduces inside backward: add their number times the gradient's size.
        return engine.cost.bytes + engine.cost.reduces * reduced

    total = 0.0

    def waited() -> list[float]:
        nonlocal total
        waits = waiting.taken()
        if mesh is not None:  # it counts the seconds of all its exchanges
            waits.append(mesh.waited - total)
            total = mesh.waited
        return waits

    return Variant(step, alone, sent, None if alone else waited)


def take_round(steps: dict[str, Variant], rank: int, device: str, number: int = 0) -> dict[str, Any]:
    """Take one step with every variant.

    Args:
        steps: The variants by name.
        rank: The rank of this process.
        device: The network device whose traffic is counted.
        number: The number of the round; each round begins with another variant, so that the measurements do not
            depend on a fixed order.

    Returns:
        Four dictionaries by variant: ``seconds`` from the barrier to the end of the step; ``bytes`` sent in exchanges;
        ``wire``, the bytes that left through the device until both ranks had finished; and ``waited``, the seconds of
        every wait for an exchange.
    """
    measured: dict[str, Any] = {"seconds": {}, "bytes": {}, "wire": {}, "waited": {}}
    order = list(steps)
    for name in order[number % len(order) :] + order[: number % len(order)]:
        variant, before = steps[name], traffic(device)
        dist.barrier()
        if rank == 0 or not variant.alone:
            sent = variant.sent()
            if variant.waited is not None:
                variant.waited()  # begins anew
            start = time.perf_counter()
            variant.step()
            measured["seconds"][name] = time.perf_counter() - start
            measured["bytes"][name] = variant.sent() - sent
            if variant.waited is not None:
                measured["waited"][name] = variant.waited()
        dist.barrier()  # the slower rank must finish before the next step begins and before its traffic is read
        after = traffic(device)
        measured["wire"][name] = None if before is None or after is None else after - before
    return {
        quantity: {name: by_variant[name] for name in steps if name in by_variant}
        for quantity, by_variant in measured.items()
    }


def traffic(device: str) -> int | None:
    """The total bytes sent through a network device; None if the system is not Linux or lacks the device."""
    try:
        with open("/proc/net/dev") as lines:
            counts = next(line.split(":", 1)[1] for line in lines if line.strip().startswith(f"{device}:"))
    except (OSError, StopIteration):
        return None
    return int(counts.split()[8])


def serve(rank: int, orders: IO[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Carry out orders until the input ends.

    Args:
        rank: The rank of this process.
        orders: JSON lines: ``{"case": {...}, "apart": false}`` sets up a case (see :func:`variants`),
            ``{"rounds": n}`` takes rounds on it.
        answer: Sends an answer; called once per case and once per round.
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
    """Join the process group and carry out orders.

    Returns:
        The exit code.
    """
    rank, meeting, patience = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    # Only answers may go to the original standard output: redirect gloo's greeting to standard error.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=out, flush=True)

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=RANKS, timeout=timedelta(seconds=patience)
        )
        with waiting.all_reduces_timed():
            serve(rank, sys.stdin, answer)
    except Exception:
        answer({"error": traceback.format_exc()})
        return 1
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
