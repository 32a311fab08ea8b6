"""What a preview includes of a real step: kept gradients, wrappers, tensors as betas, and noise."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from optimizers import Case
from torch import nn

from lowland import SAM, AdaSAM, Engine, Preconditioned, SAMPa
from lowland.core.errors import UsageError
from lowland.engine import lookahead


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def loss_fn(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def batch(step: int = 0):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)


class Sometimes(nn.Module):
    """A model whose second layer is not used in all steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.used = nn.Linear(4, 4), nn.Linear(4, 4), True

    def forward(self, x):
        return self.second(self.first(x)) if self.used else self.first(x)


@dataclass(frozen=True, kw_only=True)
class Looks(SAM):
    """Asks for a preview inside its plan, as SAMPa does."""

    def plan(self, engine, batch):
        loss, grad = yield from super().plan(engine, batch)
        seen.append(engine.lookahead(grad, among=engine.reached))
        return loss, grad


seen: list[list[torch.Tensor]] = []


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
def test_a_kept_gradient_of_zeros_is_a_gradient(kind, frozen, to_none):
    model = Sometimes()
    optimizer = {
        "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
        "adam": lambda ps: torch.optim.Adam(ps, lr=0.1, weight_decay=0.1),
        "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    }[kind](model.parameters())
    engine = Engine(Looks(), model, optimizer, loss_fn)
    for step, model.used in enumerate((True, True, False, False, True)):
        if frozen:
            model.second.requires_grad_(model.used)
        engine.backward(batch(step))
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in engine.params]
        after = engine.lookahead(grads, among=engine.reached)
        before = [p.detach().clone() for p in engine.params]
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        for inside, outside, p, b in zip(seen.pop(), after, engine.params, before, strict=True):
            moved = p.detach() - b
            if not p.requires_grad:  # a frozen parameter is displaced by no method
                moved = torch.zeros_like(moved)
            torch.testing.assert_close(inside, moved, rtol=1e-12, atol=1e-15)
            torch.testing.assert_close(outside, moved, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("to_none", [True, False])
def test_sampa_is_at_the_point_that_the_optimizer_would_reach(to_none):
    """By hand: with lam = 1 the step's gradient is that at y', where unused weights are moved, too."""
    model = Sometimes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    engine = Engine(SAMPa(lam=1.0), model, optimizer, loss_fn)
    for step, model.used in enumerate((True, True, False)):
        engine.backward(batch(step))
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
    model.used = True
    params = list(model.parameters())
    before = [p.detach().clone() for p in params]
    ahead = []
    for p, g, b in zip(params, engine.memory["grad_y"], before, strict=True):
        moved = p in optimizer.state and not (to_none and p is not model.first.weight and p is not model.first.bias)
        buffer = 0.9 * optimizer.state[p]["momentum_buffer"] + g + 0.1 * b
        ahead.append(b - 0.1 * buffer if moved else b.clone())
    with torch.no_grad():
        for p, y in zip(params, ahead, strict=True):
            p.copy_(y)
    expected = torch.autograd.grad(loss_fn(model, batch(3)).mean(), params)
    with torch.no_grad():
        for p, b in zip(params, before, strict=True):
            p.copy_(b)
    engine.backward(batch(3))
    for p, g in zip(params, expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-14)


class Noam:
    """Sets the learning rate inside its step."""

    def __init__(self, optimizer):
        self.optimizer, self.steps = optimizer, 0

    def step(self):
        self.steps += 1
        self.optimizer.param_groups[0]["lr"] = 0.05 * self.steps
        self.optimizer.step()


@pytest.mark.parametrize("several", [False, True])
def test_a_wrapper_with_a_step_of_its_own_has_no_lookahead(several):
    model = nn.Linear(4, 1)
    wrapper = Noam(torch.optim.SGD(model.parameters(), lr=0.0))
    given = [wrapper] if several else wrapper
    with pytest.raises(UsageError, match="but Noam, which is around it, has a step of its own, which may do more"):
        Engine(SAMPa(), model, given, loss_fn)
    Engine(SAM(), model, given, loss_fn).backward(batch())  # needs no lookahead
    Engine(SAMPa(lookahead="raw"), model, given, loss_fn).backward(batch())
    Engine(SAMPa(), model, wrapper.optimizer, loss_fn).backward(batch())


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_a_hook_around_the_step_has_no_lookahead(kind):
    def hook(optimizer, args, kwargs):
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    register = getattr(optimizer, f"register_step_{kind}_hook")
    engine = Engine(SAMPa(), model, optimizer, loss_fn)
    for step in range(2):
        engine.backward(batch(step))
    handle = register(functools.partial(hook))
    message = rf"SGD has a step {kind}-hook, which may do more, such as clip gradients; do this in the training loop"
    with pytest.raises(UsageError, match=message):
        engine.backward(batch(2))
    with pytest.raises(UsageError, match=message):
        Engine(SAMPa(), model, optimizer, loss_fn)
    Engine(SAM(), model, optimizer, loss_fn).backward(batch())  # needs no lookahead
    handle.remove()
    engine.backward(batch(2))
    register(functools.partial(nn.utils.clip_grad_norm_, []))  # a function of torch
    engine.backward(batch(2))


@pytest.mark.parametrize("scheduled", [False, True])
def test_schedulers_and_profilers_are_no_hooks_of_one_s_own(scheduled):
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(SAMPa(), model, optimizer, loss_fn)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        for step in range(3):
            engine.backward(batch(step))
            optimizer.step()
            if scheduled:
                scheduler.step()
            optimizer.zero_grad()


def tensors(*numbers: float):
    return tuple(torch.tensor(n, dtype=torch.float32) for n in numbers)


TENSORS = {
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.1, betas=tensors(0.9, 0.99), foreach=False),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(0.1), betas=tensors(0.9, 0.99), foreach=False),
}


@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("steps", [0, 2])
def test_tensors_as_betas(make, steps):
    try:
        case = Case(make, steps)
        case.step(case.gradient())
    except (ValueError, RuntimeError):
        pytest.skip("this torch takes no tensors as betas")
    grad = case.gradient()
    found = lookahead.displacement(case.optimizer, case.params, grad)
    for a, b in zip(found, case.step(grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    model = nn.Linear(4, 1)
    optimizer = make(model.parameters())
    for method in (SAM(geometry=Preconditioned()), AdaSAM()):
        with pytest.raises(UsageError, match=r"betas, eps or weight decay are tensors; give numbers|amsgrad"):
            Engine(method, model, optimizer, loss_fn)
    engine = Engine(SAMPa(), model, optimizer, loss_fn)
    for step in range(3):
        engine.backward(batch(step))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["momentum", "weight_decay", "dampening"])
def test_tensors_as_other_numbers(name):
    options = {"momentum": 0.9, name: torch.tensor(0.5)}
    case = Case(lambda ps: torch.optim.SGD(ps, lr=0.1, foreach=False, **options), 2)
    grad = case.gradient()
    found = lookahead.displacement(case.optimizer, case.params, grad)
    for a, b in zip(found, case.step(grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


class Noisy(torch.optim.SGD):
    """Draws noise in its step, from three generators."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(torch.randn_like(p), alpha=random.random() * np.random.rand())


def test_a_preview_draws_no_random_numbers():
    case = Case(lambda ps: Noisy(ps, lr=0.1), 0)
    grad = case.gradient()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    found = lookahead.displacement(case.optimizer, case.params, grad)
    for a, b in zip(found, case.step(grad), strict=True):  # draws the same numbers
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
