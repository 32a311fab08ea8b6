"""What a rank leaves to the one that answers a probe, and what all must do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems import batch, loss_fn, net
from ranks import on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import SGD

import lowland
from lowland import MicroSAM, SAMPa
from lowland.core import vec
from lowland.core.errors import UsageError

pytestmark = pytest.mark.usefixtures("way")


class Talking(SGD):
    """Its step averages over all ranks, as that of some distributed optimizers does."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and dist.is_initialized():
                    dist.all_reduce(p.grad)
                    p.grad /= dist.get_world_size()
        return super().step(closure)


class Closed(SGD):
    """It wants a closure, which a step that is not taken has not."""

    def step(self, closure: Any = None) -> Any:
        if closure is None:
            raise RuntimeError("a closure is needed")
        return super().step(closure)


def engine_on(method: Any, kind: type) -> Any:
    model = net()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",)) if dist.is_initialized() else None
    return lowland.Engine(method, model, kind(model.parameters(), lr=0.1, momentum=0.9), loss_fn, mesh=mesh)


def trained(method: Any, kind: type) -> dict[str, Tensor]:
    engine = engine_on(method, kind)
    for step in range(4):
        engine.optimizer.zero_grad()
        engine.backward(batch(step))
        engine.optimizer.step()
    return dict(engine.model.state_dict())


def same(method: Any, kind: type) -> None:
    expected = trained(method, kind)
    for found in on_ranks(2, trained, method, kind):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


def test_an_optimizer_that_talks_to_all_ranks_looks_ahead_on_all() -> None:
    same(SAMPa(), Talking)


def refused() -> str:
    with pytest.raises(UsageError, match="lookahead needs a copy of the optimizer to step without a closure") as told:
        engine_on(SAMPa(), Closed)
    return str(told.value)


def test_an_optimizer_that_cannot_look_ahead_is_refused_on_all_ranks() -> None:
    assert len(on_ranks(2, refused)) == 2


@dataclass(frozen=True, kw_only=True)
class Drawn(MicroSAM):
    """Its radius is drawn anew for every part."""

    def ascent(self, engine: Any, grad: Any) -> Any:
        factor = torch.rand((), generator=self.generator(engine), dtype=torch.float64)
        return vec.scale(super().ascent(engine, grad), factor)


@dataclass(frozen=True, kw_only=True)
class DrawnSAMPa(SAMPa):
    """Its radius is drawn anew in every step."""

    def ascent(self, engine: Any, grad: Any) -> Any:
        factor = torch.rand((), generator=self.generator(engine), dtype=torch.float64)
        return vec.scale(super().ascent(engine, grad), factor)


@pytest.mark.parametrize("method", [Drawn(m=4), DrawnSAMPa()], ids=("micro-sam", "sampa"))
def test_an_ascent_that_draws_random_numbers_draws_the_same_on_all_ranks(method: Any) -> None:
    same(method, SGD)
