"""Optimizers of every kind on two groups of parameters, for tests that preview their steps."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Signed(torch.optim.SGD):
    """A subclass that overrides what SGD does: a closed form for SGD would be wrong."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p].setdefault("count", torch.zeros(()))
                    self.state[p]["count"] += 1
                    p.sub_(group["lr"] * self.state[p]["count"] * p.grad.sign())


class Listed(torch.optim.Optimizer):
    """Keeps its own references to parameters, as third-party optimizers do."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.every = [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.every:
            if p.grad is not None:
                p.add_(p.grad, alpha=-self.param_groups[0]["lr"])


def adam(kind, **options):
    return lambda params: kind(params, lr=0.01, **options)


def sgd(**options):
    return lambda params: torch.optim.SGD(params, **{"lr": 0.1, **options})


def takes_lr_of_one_entry() -> bool:
    """Whether torch's optimizers step with a learning rate of shape (1,); those of torch 2.6 do not."""
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    try:
        torch.optim.SGD([p], lr=torch.tensor([0.1])).step()
    except TypeError:
        return False
    return True


CLOSED = {
    "sgd": sgd(),
    "sgd-wd": sgd(weight_decay=0.1),
    "sgd-momentum": sgd(momentum=0.9),
    "sgd-dampening": sgd(momentum=0.9, dampening=0.3, weight_decay=0.1),
    "sgd-nesterov": sgd(momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd-maximize": sgd(momentum=0.9, maximize=True, weight_decay=0.1),
    "sgd-foreach": sgd(momentum=0.9, foreach=True),
    "sgd-fused": sgd(momentum=0.9, nesterov=True, fused=True, weight_decay=0.1),
    "sgd-tensor-lr": sgd(lr=torch.tensor(0.1, dtype=torch.float64), momentum=0.9),
    "sgd-tensor-lr-1": sgd(lr=torch.tensor([0.1], dtype=torch.float64)),
    **{
        f"{name}-{label}": adam(kind, **options)
        for name, kind in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW))
        for label, options in {
            "plain": {},
            "wd": {"weight_decay": 0.1},
            "amsgrad": {"amsgrad": True, "weight_decay": 0.1},
            "maximize": {"maximize": True, "weight_decay": 0.1},
            "foreach": {"foreach": True, "betas": (0.5, 0.6), "eps": 1e-3},
            "single": {"foreach": False, "amsgrad": True},
            "fused": {"fused": True, "weight_decay": 0.1},
        }.items()
    },
    "adamw-tensor-lr": lambda ps: torch.optim.AdamW(
        ps, lr=torch.tensor(0.01, dtype=torch.float64), weight_decay=0.1, foreach=False
    ),
    "adamw-tensor-lr-1": lambda ps: torch.optim.AdamW(
        ps, lr=torch.tensor([0.01], dtype=torch.float64), weight_decay=0.1, foreach=False
    ),
}
if not takes_lr_of_one_entry():
    CLOSED = {key: make for key, make in CLOSED.items() if not key.endswith("tensor-lr-1")}
DRY = {
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.9, weight_decay=0.1, centered=True),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1, lr_decay=0.01),
    "adadelta": lambda ps: torch.optim.Adadelta(ps, rho=0.8),
    "nadam": lambda ps: torch.optim.NAdam(ps, lr=0.01, weight_decay=0.1),
    "radam": lambda ps: torch.optim.RAdam(ps, lr=0.01),
    "adamax": lambda ps: torch.optim.Adamax(ps, lr=0.01),
    "rprop": lambda ps: torch.optim.Rprop(ps),
    "asgd": lambda ps: torch.optim.ASGD(ps),
    "subclass": lambda ps: Signed(ps, lr=0.1),
    "listed": lambda ps: Listed([p for group in ps for p in group["params"]]),
}
ALL = CLOSED | DRY


class Case:
    """Two groups with their own learning rate, a frozen parameter and a foreign one inside the optimizer."""

    def __init__(self, make, steps: int):
        self.generator = torch.Generator().manual_seed(0)
        a, b, c, frozen, foreign = (nn.Parameter(self.draw(s)) for s in [(3, 2), (4,), (), (2,), (2,)])
        frozen.requires_grad_(False)
        self.params = [c, a, b]  # not in the optimizer's order
        self.others = [frozen, foreign]
        self.optimizer = make([{"params": [a, frozen, b]}, {"params": [foreign, c]}])
        if len(self.optimizer.param_groups) > 1:
            self.optimizer.param_groups[1]["lr"] = self.optimizer.param_groups[0]["lr"] * 0.5
        for _ in range(steps):
            self.step(self.gradient())

    def draw(self, shape) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def gradient(self) -> list[Tensor]:
        return [self.draw(p.shape) for p in self.params]

    def step(self, grad: list[Tensor]) -> list[Tensor]:
        """What the optimizer really does."""
        before = [p.detach().clone() for p in self.params]
        for p, g in zip(self.params, grad, strict=True):
            p.grad = g.clone()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return [p.detach() - b for p, b in zip(self.params, before, strict=True)]

    def trace(self):
        """All that a preview could leave behind."""
        every = self.params + self.others
        names = {id(p): i for i, p in enumerate(every)}
        state = {names[id(p)]: copy.deepcopy(s) for p, s in self.optimizer.state.items()}
        groups = [
            {k: [id(p) for p in v] if k == "params" else copy.deepcopy(v) for k, v in g.items()}
            for g in self.optimizer.param_groups
        ]
        return state, groups, [p.detach().clone() for p in every], [p.grad for p in every]


def assert_unchanged(found, expected) -> None:
    assert type(found) is type(expected)
    if isinstance(found, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        for key in found:
            assert_unchanged(found[key], expected[key])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for x, y in zip(found, expected, strict=True):
            assert_unchanged(x, y)
    else:
        assert found == expected
