"""Probes divided over two ranks give what one device gives."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from conformance import method_of
from problems import batch, loss_fn, net, sgd
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

import lowland
from lowland.core import batch as batches
from lowland.core.errors import UsageError
from lowland.core.probe import Probe

TOGETHER = [
    "sampa",
    "sampa:lam=0",
    "sampa:lookahead=raw",
    "async-sam",
    "micro-sam",
    "micro-sam:m=3",
    "late:start=2,inner=sampa",
]

pytestmark = pytest.mark.usefixtures("way")


def trained(text: str, count: int, kinds: dict[str, Any], dtype: torch.dtype, steps: int) -> dict[str, Any]:
    """Train on a mesh of ``count`` groups, or on one device where that is 0."""
    model = net(dtype=dtype, **kinds)
    optimizer = sgd(model)
    mesh = init_device_mesh("cpu", (count,), mesh_dim_names=("probe",)) if count else None
    engine = lowland.Engine(method_of(text), model, optimizer, loss_fn, mesh=mesh)
    torch.manual_seed(1)
    losses = []
    for step in range(steps):
        losses.append(engine.backward(batch(step, size=8 if step % 3 else 11, dtype=dtype)))
        optimizer.step()
        optimizer.zero_grad()
    return {"state": model.state_dict(), "losses": torch.stack(losses), "bytes": engine.cost.bytes}


@pytest.mark.parametrize("text", TOGETHER)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kinds", [{"norm": True}, {"odd": True, "dropout": 0.3}], ids=str)
def test_a_mesh_of_two_is_one_device(text: str, dtype: torch.dtype, close: float, kinds: dict[str, Any]) -> None:
    if "micro" in text:  # one device asks for its shards one by one, and so draws other masks
        kinds = {**kinds, "dropout": 0.0}
    torch.manual_seed(0)
    expected = trained(text, 0, kinds, dtype, 20)
    first, second = on_ranks(2, trained, text, 2, kinds, dtype, 20)
    for name, value in expected["state"].items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        torch.testing.assert_close(first["state"][name], value, rtol=close, atol=close)
    torch.testing.assert_close(first["losses"], expected["losses"], rtol=close, atol=close)
    assert torch.equal(first["losses"], second["losses"])


def by_passes(parts: int) -> Any:
    """The same step, where the caller runs forward and backward, in parts or whole."""
    model = net()
    optimizer = sgd(model)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",))
    engine = lowland.Engine(method_of("sampa"), model, optimizer, mesh=mesh)
    for step in range(5):
        for p in engine.passes(batch(step)):
            with p:
                for piece in batches.chunk(p.batch, parts):
                    p.backward(loss_fn(model, piece), 1 / parts, piece)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("parts", [1, 4])
def test_each_rank_runs_its_own_pass(parts: int) -> None:
    torch.manual_seed(0)
    model = net()
    engine = lowland.Engine(method_of("sampa"), model, sgd(model), loss_fn)
    for step in range(5):
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    first, second = on_ranks(2, by_passes, parts)
    for name, value in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-10, atol=1e-10)


def twice() -> Any:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 3)).double()
    shared = model[0]

    def loss(model: Any, batch: Any) -> torch.Tensor:
        x = batch[0].clone().requires_grad_()
        for _ in range(2):
            x = checkpoint(shared, x, use_reentrant=True)
        return torch.nn.functional.cross_entropy(model[1](x), batch[1])

    ranks = torch.distributed.is_initialized()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",)) if ranks else None
    engine = lowland.Engine(lowland.SAMPa(), model, sgd(model), loss, mesh=mesh)
    try:
        for step in range(3):
            engine.optimizer.zero_grad()
            engine.backward(batch(step))
            engine.optimizer.step()
    except UsageError as error:
        return str(error)
    return model.state_dict()


def test_a_gradient_that_comes_in_two_parts_is_not_sent_too_early(way: str) -> None:
    for found in on_ranks(2, twice):
        if way == "messages":
            assert "backward came to a parameter twice" in found
            assert "use_reentrant=False" in found
        else:  # nothing leaves before backward has ended
            for name, value in twice().items():
                torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


def computed() -> list[int]:
    model = net()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",))
    counts = [0, 0]
    held: list[Any] = []

    def loss(model: Any, batch: Any) -> torch.Tensor:
        assert [vector() for vector in held] == [None, None]  # while a pass runs, neither takes memory
        held.clear()
        return loss_fn(model, batch)

    class Counting(lowland.SAMPa):
        def plan(self, engine: Any, batch: Any) -> Any:
            def at(which: int, vector: torch.Tensor) -> Any:
                counts[which] += 1
                return [torch.zeros_like(p) for p in engine.params]

            vectors = [torch.zeros(3), torch.zeros(3)]
            held.extend(map(weakref.ref, vectors))
            ask = tuple(Probe(batch, at=partial(at, i, vectors.pop()), stats=i == 1) for i in (0, 1))
            first, second = yield ask
            return second.loss, first.grad

    engine = lowland.Engine(Counting(), model, sgd(model), loss, mesh=mesh)
    for step in range(3):
        engine.backward(batch(step))
    return counts


def test_only_who_answers_a_probe_computes_its_displacement() -> None:
    assert on_ranks(2, computed) == [[3, 0], [0, 3]]
