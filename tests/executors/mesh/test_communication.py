"""What a step really sends, counted at the collectives, next to what theory says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from conformance import method_of
from problems import batch, loss_fn, net, sgd
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.executors.mesh import exchange, messages
from lowland.executors.mesh import mesh as mesh_module

STEPS = 4
SMALL = 32


class Ledger:
    """Numbers that pass through the collectives of this rank, by kind; those of DDP through its own hook."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.small = 0

    def add(self, kind: str, count: int) -> None:
        if count < SMALL:  # flags, losses and statistics, not vectors
            self.small += 1
        else:
            self.sent[kind] = self.sent.get(kind, 0) + count


def counted(text: str, shape: tuple[int, ...], names: tuple[str, ...], ddp: bool) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    model: Any = net()
    size = sum(p.numel() for p in model.parameters())
    ledger = Ledger()
    if ddp:
        model = DistributedDataParallel(model, process_group=mesh["data"].get_group())

        def hook(state: Any, bucket: Any) -> Any:
            ledger.add("all-reduce", bucket.buffer().numel())
            averaged = bucket.buffer() / mesh["data"].size()
            return dist.all_reduce(averaged, group=mesh["data"].get_group(), async_op=True).get_future().then(
                lambda done: done.value()[0]
            )  # fmt: skip

        hook.__annotations__ = {"bucket": dist.GradBucket}  # DDP wants the class, not its name
        model.register_comm_hook(None, hook)
    own = next((mesh[name] for name in names if name != "data"), None)
    engine = lowland.Engine(method_of(text), model, sgd(model), loss_fn, mesh=own)
    with pytest.MonkeyPatch.context() as patch:
        reduce, gather, cast = dist.all_reduce, exchange.all_gather, dist.broadcast

        def all_reduce(x: torch.Tensor, *args: Any, **options: Any) -> Any:
            if not ddp or not options.get("async_op"):
                ledger.add("all-reduce", x.numel())
            return reduce(x, *args, **options)

        def all_gather(everyone: torch.Tensor, mine: torch.Tensor, group: Any) -> Any:
            ledger.add("all-gather", mine.numel())
            return gather(everyone, mine, group)

        def broadcast(x: torch.Tensor, *args: Any, **options: Any) -> Any:
            ledger.add("broadcast", x.numel())
            return cast(x, *args, **options)

        patch.setattr(dist, "all_reduce", all_reduce)
        patch.setattr(dist, "broadcast", broadcast)
        for module in (messages, mesh_module):
            patch.setattr(module, "all_gather", all_gather)
        seen = mesh["data"].get_local_rank() if "data" in names else 0
        seen = own.get_local_rank() if names == ("replicate",) and own is not None else seen
        for step in range(STEPS):
            engine.backward(batch(step + 50 * seen, size=9))
            engine.optimizer.step()
            engine.optimizer.zero_grad()
    per_step = {kind: count / STEPS / size for kind, count in ledger.sent.items()}
    return {"sent": per_step, "bytes": engine.cost.bytes / STEPS / size / 8, "small": ledger.small / STEPS}


@pytest.mark.parametrize(
    ("text", "shape", "names", "ddp", "sent"),
    [
        ("sampa", (2,), ("probe",), False, {"all-gather": 1}),
        ("async-sam", (2,), ("probe",), False, {"all-gather": 1}),
        ("sampa", (2, 2), ("probe", "data"), True, {"all-gather": 1, "all-reduce": 1}),
        ("micro-sam:m=2", (2,), ("data",), True, {"all-reduce": 1}),
        ("micro-sam:m=2", (2,), ("replicate",), False, {"all-reduce": 1}),
        ("sam", (2,), ("data",), True, {"all-reduce": 2}),
        ("sam", (2,), ("replicate",), False, {"all-reduce": 2}),
        ("plain", (2,), ("data",), True, {"all-reduce": 1}),
        ("gsam", (2,), ("data",), True, {"all-reduce": 2}),
        ("sam:ascent_gradient=local", (2,), ("data",), True, {"all-reduce": 1}),
        ("sam:ascent_gradient=local", (2,), ("replicate",), False, {"all-reduce": 1}),
        ("gsam:ascent_gradient=local", (2,), ("data",), True, {"all-reduce": 1}),
        ("esam:ascent_gradient=local", (2,), ("data",), True, {"all-reduce": 1}),
    ],
)
def test_a_step_sends_what_theory_says(
    text: str, shape: Any, names: Any, ddp: bool, sent: dict[str, float], by_messages: None
) -> None:
    for found in on_ranks(torch.Size(shape).numel(), counted, text, shape, names, ddp):
        assert found["sent"] == sent
        ours = sum(sent.values()) - (1 if ddp and "all-gather" in sent else sent.get("all-reduce", 0) if ddp else 0)
        if not (ddp and ("micro" in text or "local" in text)):  # there the only average is the engine's
            assert found["bytes"] == ours  # DDP keeps its own account
        else:
            assert found["bytes"] == 1
        assert found["small"] <= 2  # flags and losses go in one collective each


@pytest.mark.parametrize("text", ["sampa", "async-sam"])
def test_shared_memory_takes_the_place_of_messages(text: str) -> None:
    for found in on_ranks(2, counted, text, (2,), ("probe",), False):
        assert found["sent"] == {}
        assert found["bytes"] == 1
        assert found["small"] == 1
