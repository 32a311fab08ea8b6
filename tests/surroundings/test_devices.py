"""Devices other than CUDA's, and machines with several GPUs, as far as a CPU can stand for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guarded import data, method_for
from problems import parted
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import lowland
from lowland.core import vec
from lowland.methods import METHODS
from lowland.planner.costs import measure
from lowland.testing.networks import network


@pytest.fixture(autouse=True)
def single() -> Any:
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


class NoDouble(TorchDispatchMode):
    """As on MPS: there are no doubles."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor) and t.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return out


class Own:
    """A batch whose size only the loss knows."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors


def each(model: nn.Module, batch: Any) -> Tensor:
    x, targets, *_ = batch.tensors if isinstance(batch, Own) else batch
    return nn.functional.cross_entropy(model(x), targets, reduction="none")


def total(model: nn.Module, batch: Any) -> lowland.Loss:
    losses = each(model, batch)
    return lowland.Loss(losses.sum(), len(losses))


def halves(batch: Any, kind: Any = lambda *t: t) -> lowland.Parts:
    return lowland.Parts([kind(*(t[:3] for t in batch)), kind(*(t[3:] for t in batch))])


def trained(key: str, loss: Any, cut: Any, *, adam: bool = False, hook: bool = False) -> list[Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    if hook:
        model[0].weight.register_hook(lambda grad: None)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if adam or key == "adasam":
        optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    engine = lowland.Engine(method_for(key), model, optimizer, parted(key, loss), total_steps=20)
    for step in range(4):
        engine.backward(cut(data(step)))
        optimizer.step()
        optimizer.zero_grad()
    engine.load_state_dict(engine.state_dict())
    return [p.detach() for p in model.parameters()]


CASES: dict[str, dict[str, Any]] = {
    "whole": {"loss": each, "cut": lambda b: b},
    "adam": {"loss": each, "cut": lambda b: b, "adam": True},
    "hooks": {"loss": each, "cut": lambda b: b, "hook": True},
    "sums": {"loss": total, "cut": halves},
    "unknown sizes": {"loss": each, "cut": lambda b: halves(b, Own)},
}
CHOOSING = {"k-sam", "esam", "ausam", "bisam", "micro-sam", "async-sam", "sampa"}  # they look into batches


PAIRS = [(key, case) for key in METHODS for case in CASES if key not in CHOOSING or case in ("whole", "adam", "hooks")]


@pytest.mark.parametrize(("key", "case"), PAIRS)
def test_a_device_without_doubles(key: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(key, **CASES[case])
    monkeypatch.setattr(vec, "wide", lambda device: torch.float32)
    with NoDouble():
        found = trained(key, **CASES[case])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # counts and corrections in single precision


def test_the_widest_type_of_a_device() -> None:
    found = {device: vec.wide(torch.device(device)) for device in ("cpu", "cuda:1", "xpu", "mps")}
    assert found == {"cpu": torch.float64, "cuda:1": torch.float64, "xpu": torch.float64, "mps": torch.float32}


def test_other_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """``fork_rng`` without devices, and ``torch.manual_seed``, reach every GPU of the machine."""

    def touched(*args: Any) -> None:
        raise AssertionError("a GPU was initialized or seeded")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, touched)
    before = torch.get_rng_state()
    measure(lowland.SAM())
    network()
    assert torch.equal(torch.get_rng_state(), before)
