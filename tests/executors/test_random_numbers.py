"""One draw per step of torch's, Python's and NumPy's global random numbers, with ``rng="shared"``."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from problems import batch, loss_fn, net, sgd
from ranks import on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import lowland
from lowland.core.errors import ArgumentError
from lowland.executors import modes


def draws(method: lowland.Method, rng: str, mesh: Any = None) -> list[list[tuple[float, ...]]]:
    """What every pass of three steps has drawn."""
    seen: list[tuple[float, ...]] = []

    def loss(model: Any, b: Any) -> Tensor:
        seen.append((np.random.beta(1.0, 1.0), random.random(), float(torch.rand(()))))
        return loss_fn(model, b)

    for seed in (np.random.seed, random.seed, torch.manual_seed):
        seed(0)
    model = net()
    engine = lowland.Engine(method, model, sgd(model), loss, rng=rng, mesh=mesh)
    steps = []
    for step in range(3):
        engine.backward(batch(step))
        steps.append(seen.copy())
        seen.clear()
    return steps


@pytest.mark.parametrize("method", [lowland.SAM(), lowland.SAMPa(), lowland.KSAM(), lowland.MicroSAM(m=2)])
def test_shared_numbers_are_drawn_once_per_step(method: lowland.Method) -> None:
    steps = draws(method, "shared")
    assert all(len(set(step)) == 1 and len(step) > 1 for step in steps)
    assert len({step[0] for step in steps}) == 3
    assert all(len(set(step)) > 1 for step in draws(method, "free"))


def on_mesh() -> list[list[tuple[float, ...]]]:
    return draws(lowland.SAMPa(), "shared", init_device_mesh("cpu", (2,), mesh_dim_names=("probe",)))


def test_ranks_that_share_probes_draw_the_same() -> None:
    first, second = on_ranks(2, on_mesh)
    assert first == second
    assert [step[0] for step in first] == [step[0] for step in draws(lowland.SAMPa(), "shared")]


def test_devices_without_random_numbers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="torch cannot do so on ipu"):
        modes.SharedRNG(torch.device("ipu")).rewind()


def test_other_accelerators_are_rewound(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        state = torch.zeros(2, dtype=torch.uint8)

        @classmethod
        def get_rng_state(cls, device: Any) -> Tensor:
            return cls.state.clone()

        @classmethod
        def set_rng_state(cls, state: Tensor, device: Any) -> None:
            cls.state = state.clone()

    monkeypatch.setattr(torch, "xpu", Module)
    shared = modes.SharedRNG(torch.device("xpu"))
    shared.rewind()
    Module.state += 1
    shared.rewind()
    assert Module.state.tolist() == [0, 0]
