"""A small model, its base optimizer, and a method behind a standard closure."""

from __future__ import annotations

import torch
from torch import nn

from lowland import SAM, ClosureOptimizer, Engine

BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2),
}


DEFAULT = SAM(rho=0.1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))


def batch(step: int):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 3, generator=generator), torch.randint(2, (6,), generator=generator)


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Setup:
    """A model, its base optimizer, and the engine's method behind a closure."""

    def __init__(self, method=DEFAULT, base=BASES["sgd"], **options):
        self.model = network()
        self.base = base(self.model.parameters())
        self.engine = Engine(method, self.model, self.base, loss_fn, **options)
        self.optimizer = ClosureOptimizer(self.engine)
        self.calls = 0

    def closure(self, step: int, *, set_to_none: bool = True):
        def closure():
            self.calls += 1
            self.optimizer.zero_grad(set_to_none=set_to_none)
            loss = loss_fn(self.model, batch(step))
            loss.backward()
            return loss

        return closure

    def weights(self):
        return [t.detach().clone() for t in self.model.state_dict().values()]


def assert_equal(a, b) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
