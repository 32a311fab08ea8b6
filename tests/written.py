"""Modules that write state in forward, of every kind, and SAM by hand on them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, spectral_norm

import lowland

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64; SAM adds 1e-12 to the norm


class Ring(nn.Module):
    """A queue of the last examples, whose mean is part of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(16, 5))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            places = (self.pointer + torch.arange(len(x))) % 16
            self.queue[places] = x.detach()
            self.pointer += len(x)
        return x + self.queue.mean(0)


class HandNorm(nn.Module):
    """Running statistics as people write them: the buffer is bound anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Attribute(nn.Module):
    """A tensor in an attribute that is no buffer, first None."""

    def __init__(self) -> None:
        super().__init__()
        self.center = None

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().mean(0)
        self.center = now if self.center is None else 0.5 * self.center + 0.5 * now
        return x - self.center


class Made(nn.Module):
    """A tensor in an attribute that the first forward makes."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "center"):
            self.center = torch.zeros(5)
        self.center = 0.5 * self.center + 0.5 * x.detach().mean(0)
        return x - self.center


class LateBuffer(nn.Module):
    """A buffer that is None until the first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.center is None:
            self.center = torch.zeros(5)
        self.center.mul_(0.5).add_(x.detach().mean(0))
        return x - self.center


class Synced(_BatchNorm):
    """A subclass of BatchNorm with a forward of its own."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.0


class Instance(nn.InstanceNorm1d):
    """InstanceNorm whose running statistics are read, too."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            super().forward(x.reshape(len(x), 5, 1).expand(-1, -1, 3) * torch.arange(3.0)).mean(2) + self.running_mean
        )


class Cell(nn.Module):
    """State in a list's stead: a plain tensor written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(5)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().sum(0)
        return x + 0.1 * self.seen


class Functional(nn.Module):
    """``batch_norm`` of torch writes statistics without a new version."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("var", torch.ones(5))
        self.register_buffer("mask", torch.ones(1).expand(5))  # cannot be written in place

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.batch_norm(x, self.mean, self.var, training=True) * self.mask
        return out + nn.functional.batch_norm(x, self.mean, self.var)


def around(make):
    return lambda: nn.Sequential(nn.Linear(5, 5), make(), nn.Tanh(), nn.Linear(5, 1))


MODELS = {
    "spectral": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(5, 6)), nn.Tanh(), parametrizations.spectral_norm(nn.Linear(6, 1))
    ),
    "spectral hook": lambda: nn.Sequential(spectral_norm(nn.Linear(5, 6)), nn.Tanh(), spectral_norm(nn.Linear(6, 1))),
    "ring": around(Ring),
    "by hand": around(HandNorm),
    "attribute": around(Attribute),
    "made": around(Made),
    "late buffer": around(LateBuffer),
    "in place": around(Cell),
    "instance": around(lambda: Instance(5, track_running_stats=True, affine=True)),
    "synced": around(lambda: Synced(5)),
    "functional": around(Functional),
    "batch norm": around(lambda: nn.BatchNorm1d(5)),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def made(make):
    torch.manual_seed(3)
    return make()


def data(step: int = 0, size: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(size, 5, generator=g), torch.randn(size, 1, generator=g)


def loss_fn(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


def state(*modules) -> list:
    """All buffers and tensors in attributes, copied."""
    found = []
    for m in [part for module in modules for part in module.modules()]:
        for owner in (m._buffers, vars(m)):
            for key, value in list(owner.items()):
                if (isinstance(value, Tensor) or value is None) and not (value is None and key.startswith("_")):
                    found.append((owner, key, None if value is None else value.detach().clone()))
    return found


def put(saved: list) -> None:
    for owner, key, value in saved:
        owner[key] = None if value is None else value.clone()


def grad_of(params, loss) -> list[Tensor]:
    return list(torch.autograd.grad(loss.mean(), params))


def sam_by_hand(model, batch, rho: float, loss=loss_fn, *others) -> list[Tensor]:
    """SAM's gradient; both passes start from the state as it is, and the first one's update stays."""
    params = list(model.parameters())
    start = state(model, *others)
    first = grad_of(params, loss(model, batch))
    after = state(model, *others)
    there = {(id(owner), key) for owner, key, _ in start}
    for owner, key, _ in after:
        if (id(owner), key) not in there:
            del owner[key]
    put(start)
    norm = torch.cat([g.flatten() for g in first]).norm()
    kept = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, first, strict=True):
            p += rho * g / norm
    second = grad_of(params, loss(model, batch))
    with torch.no_grad():
        for p, k in zip(params, kept, strict=True):
            p.copy_(k)
    put(after)
    return second


def engine_for(model, method, loss=loss_fn, lr: float = 0.1, **options):
    return lowland.Engine(method, model, torch.optim.SGD(model.parameters(), lr=lr), loss, **options)


def step(engine, batch) -> None:
    engine.optimizer.zero_grad()
    engine.backward(batch)
    engine.optimizer.step()


def alike(a, b) -> None:
    for (_, key, x), (_, other, y) in zip(a, b, strict=True):
        assert key == other
        assert (x is None) == (y is None), key
        if x is not None:
            torch.testing.assert_close(x, y, **EXACT)
