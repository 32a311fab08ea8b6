"""When gradients must be copied: what is known of CUDA graphs before any gradient is there, with "cuda" as a name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland.executors.ownership import Ownership

compiled = functools.partial(torch.compile, backend="eager")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh())


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return model(batch).mean(1)


@compiled
def block(x: Tensor) -> Tensor:
    return x.tanh()


class Decorated(nn.Module):
    @compiled
    def forward(self, x: Tensor) -> Tensor:
        return x


class Calling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return block(x)


class Helped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return self.help(x)

    @compiled
    def help(self, x: Tensor) -> Tensor:
        return x


class Holding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = block


def with_forward() -> nn.Module:
    model = net()
    model[0].forward = compiled(model[0].forward)
    return model


def in_place() -> nn.Module:
    model = net()
    model.compile(backend="eager")
    return nn.Sequential(model)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "wrapped": lambda: nn.Sequential(compiled(net())),
    "in place": in_place,
    "forward of an instance": with_forward,
    "forward of a class": lambda: nn.Sequential(Decorated()),
    "a method": Helped,
    "a function of the module": Calling,
    "an attribute": lambda: nn.Sequential(Holding()),
}
tanh = compiled(nn.Tanh())
LOSSES: dict[str, Any] = {
    "compiled": compiled(loss_fn),
    "partial": functools.partial(compiled(loss_fn)),
    "called": lambda m, b: block(m(b)).mean(1),
    "a module": lambda m, b: tanh(m(b)).mean(1),
}


@pytest.mark.parametrize("device", ["cuda", "xpu:1"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_compiled_models_on_devices_with_graphs(make: Callable[[], nn.Module], device: str) -> None:
    assert Ownership(make(), torch.device(device), loss_fn).needed
    assert not Ownership(make(), torch.device("cpu"), loss_fn).needed


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_compiled_losses_on_devices_with_graphs(loss: Any) -> None:
    assert Ownership(net(), torch.device("cuda"), loss).needed
    assert not Ownership(net(), torch.device("cpu"), loss).needed
    assert not Ownership(net(), torch.device("cuda"), loss_fn).needed


def test_a_model_compiled_later() -> None:
    model = net()
    ownership = Ownership(model, torch.device("cuda"), loss_fn)
    assert not ownership.needed
    model.compile(backend="eager")
    ownership.look()
    assert ownership.needed


def test_who_else_holds_the_memory_of_a_gradient() -> None:
    ownership = Ownership(net(), torch.device("cpu"), loss_fn)
    # Both halves of one storage, as the backward of a concatenation gives them.
    halves = [t.detach() for t in torch.arange(4.0).split(2)]
    assert ownership.own([halves[0], None, halves[1], torch.ones(1)])[0] is halves[0]
    assert not ownership.needed
    buffer = torch.arange(4.0)
    (found,) = ownership.own([buffer.view(2, 2)])
    assert ownership.needed
    buffer.zero_()
    assert torch.equal(found, torch.arange(4.0).view(2, 2))


def test_views_of_buckets_are_copied_elsewhere() -> None:
    ownership, bucket = Ownership(net(), torch.device("cpu"), loss_fn, views=True), torch.ones(4)
    assert ownership.own([bucket[:2], bucket[2:]])[0].data_ptr() == bucket.data_ptr()
    assert not ownership.needed
