"""Layers that several ranks compute together: right where their weights are equal, refused where they are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems import batch, loss_fn, sgd
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core.errors import LowlandError
from lowland.methods import make


class SharedSyncNorm(nn.BatchNorm1d):
    """A layer of somebody else's, which runs on a CPU, too: mean and variance over the examples of all ranks."""

    process_group: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        own = torch.stack([x.mean(0), x.square().mean(0)])
        mean, square = all_reduce(own, group=self.process_group or dist.group.WORLD) / dist.get_world_size()
        return (x - mean) / (square - mean.square() + self.eps).sqrt() * self.weight + self.bias


def net(norm: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), norm(4), nn.Tanh(), nn.Linear(4, 3)).double()


def said(run: Callable[[], Any]) -> str:
    try:
        run()
    except LowlandError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def trained(model: nn.Module, text: str, share: slice) -> list[Tensor]:
    engine = lowland.Engine(make(text), model, sgd(model), loss_fn)
    for step in range(4):
        engine.backward([t[share] for t in batch(step)])
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return [p.detach() for p in engine.params]


def data_parallel(text: str) -> Any:
    rank = dist.get_rank()
    found: list[Tensor] = []
    share = slice(4 * rank, 4 * rank + 4)
    words = said(lambda: found.extend(trained(DistributedDataParallel(net(SharedSyncNorm)), text, share)))
    return words, found


@pytest.mark.parametrize("text", ["plain", "sam", "gsam", "sampa", "sam-on"])
def test_gradients_that_are_averaged(text: str) -> None:
    """Two halves of a batch with statistics of both are the whole batch with BatchNorm."""
    expected = trained(net(nn.BatchNorm1d), text, slice(None))
    for words, found in on_ranks(2, data_parallel, text):
        assert words == "nothing"
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("text", ["micro-sam:m=2", "gsam:ascent_gradient=local"])
def test_gradients_that_are_taken_apart(text: str) -> None:
    for words, _ in on_ranks(2, data_parallel, text):
        assert "UsageError: SharedSyncNorm must not span ranks whose gradients a method takes apart" in words
        assert "1 spans ranks [0, 1]; use BatchNorm" in words.replace("module.1", "1")


def on_a_mesh() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",))

    def made(model: nn.Module) -> lowland.Engine:
        return lowland.Engine(lowland.SAMPa(), model, sgd(model), loss_fn, mesh=mesh)

    own = [dist.new_group([r]) for r in range(2)][dist.get_rank()]
    alone = net(SharedSyncNorm)
    alone[1].process_group = own
    found: dict[str, Any] = {
        "all ranks": said(lambda: made(net(SharedSyncNorm))),
        "one rank": said(lambda: made(alone)),
    }
    for name, group in {"converted": None, "converted alone": own}.items():
        engine = made(model := net(nn.BatchNorm1d))
        engine.backward(batch(0))
        before = [p.grad.clone() for p in engine.params]
        model[1] = nn.SyncBatchNorm.convert_sync_batchnorm(model[1], group)
        model[1].forward = lambda x, m=model[1]: nn.functional.batch_norm(x, None, None, m.weight, m.bias, True)
        found[name] = said(lambda e=engine: e.backward(batch(1)))
        found[f"{name} left"] = [torch.equal(p.grad, b) for p, b in zip(engine.params, before, strict=True)]
    return found


def test_on_a_probe_mesh() -> None:
    for found in on_ranks(2, on_a_mesh):
        assert "ParameterError: SharedSyncNorm must not span the groups of a probe mesh" in found["all ranks"]
        assert found["one rank"] == "nothing"
        assert "ParameterError: SyncBatchNorm must not span the groups of a probe mesh" in found["converted"]
        assert all(found["converted left"])
        assert found["converted alone"] == "nothing"
        assert not any(found["converted alone left"])
