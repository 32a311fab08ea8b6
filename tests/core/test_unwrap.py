"""Optimizers inside the wrappers of frameworks, by stand-ins that behave like them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from closures import batch, loss_fn, network
from torch.optim import Optimizer

from lowland import Engine, MomentumSAM, SAMPa
from lowland.core.errors import ParameterError, UsageError
from lowland.engine import lookahead


class LightningOptimizer:
    """Imitates the class of what it holds, forwards attributes, and cannot be copied or stepped by itself."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Lightning" + type(optimizer).__name__, (type(self), type(optimizer)), {})

    @property
    def optimizer(self):
        return self._optimizer

    def step(self, closure=None):
        raise RuntimeError("not attached to a Trainer")

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


class _FabricOptimizer:
    """Imitates the class, too, and takes over what the optimizer holds, but for its state dict and step."""

    def __init__(self, optimizer):
        self.__dict__ = {k: v for k, v in vars(optimizer).items() if k not in ("state_dict", "step", "__del__")}
        self.__class__ = type("Fabric" + type(optimizer).__name__, (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    @property
    def optimizer(self):
        return self._optimizer

    def step(self, closure=None):
        return self._optimizer.step(closure)


class AcceleratedOptimizer(Optimizer):
    """An Optimizer without groups of its own."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


class DeepSpeedOptimizerWrapper(AcceleratedOptimizer):
    pass


class OptimWrapper:
    """No Optimizer; forwards what it lacks; translates names in its groups."""

    def __init__(self, opt):
        self.opt = opt

    @property
    def param_groups(self):
        return [{"params": group["params"], "mom": 0.9} for group in self.opt.param_groups]

    def __getattr__(self, name):
        return getattr(self.__dict__["opt"], name)


WRAPPERS = [LightningOptimizer, _FabricOptimizer, AcceleratedOptimizer, DeepSpeedOptimizerWrapper, OptimWrapper]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize(("wrapper", "outer"), [(w, o) for w in WRAPPERS for o in [None, *WRAPPERS] if w is not o])
def test_the_optimizer_inside_is_found(wrapper, outer):
    base = sgd(network())
    wrapped = wrapper(base) if outer is None else outer(wrapper(base))
    assert lookahead.unwrap(wrapped) is base


@pytest.mark.parametrize("method", [SAMPa(), MomentumSAM()], ids=lambda m: m.kind)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_methods_that_look_ahead_see_through_it(wrapper, method):
    found = []
    for wrap in (lambda base: base, wrapper):
        model = network()
        base = sgd(model)
        engine = Engine(method, model, wrap(base), loss_fn)
        assert engine.optimizer is base
        for step in range(4):
            engine.backward(batch(step))
            base.step()
            base.zero_grad()
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("several", [False, True])
def test_an_optimizer_of_accelerate_that_accumulates_is_refused(several):
    """Every micro-batch would be a step of the method, and their gradients add up undivided: 0.17 to 0.35 away."""
    model = network()
    wrapped = AcceleratedOptimizer(sgd(model))
    for count in (1, 4):
        wrapped.gradient_state = SimpleNamespace(num_steps=count)
        given = [wrapped] if several else wrapped
        if count == 1:
            assert Engine(SAMPa(), model, given, loss_fn).optimizer is wrapped.optimizer
            continue
        with pytest.raises(UsageError, match=r"after 4 micro-batches.*accelerate\.Sharpness, or pass optimizer\.opt"):
            Engine(SAMPa(), model, given, loss_fn)
    assert Engine(SAMPa(), model, wrapped.optimizer, loss_fn).optimizer is wrapped.optimizer


class Slow(Optimizer):
    """Takes the inner step and then one of its own, as Lookahead does: it must not be unwrapped."""

    def __init__(self, optimizer):
        super().__init__(optimizer.param_groups, {})
        self.optimizer = self._optimizer = self.opt = optimizer


def test_an_optimizer_with_a_step_of_its_own_is_left_as_it_is():
    slow = Slow(sgd(network()))
    assert lookahead.unwrap(slow) is slow
    assert lookahead.unwrap(LightningOptimizer(slow)) is slow


class Box:
    optimizer = None


class Lookahead:
    """fastai's: no Optimizer, with an ``opt``, but a step of its own."""

    def __init__(self, opt):
        self.opt = opt


class Failing:
    def __getattr__(self, name):
        raise RuntimeError(name)


class Endless:
    def __getattr__(self, name):
        return getattr(self._optimizer, name)


def circle(cls, place):
    box, other = cls.__new__(cls), Box()
    box.__dict__[place] = other
    other.optimizer = box
    return box


HOPELESS = {
    "none": (None, "NoneType"),
    "number": (OptimWrapper(3), "int"),
    "object": (OptimWrapper(object()), "object"),
    "list": (OptimWrapper([sgd(network())]), "list"),
    "class": (torch.optim.SGD, "type"),
    "empty": (Box(), "Box"),
    "fastai's own": (OptimWrapper(Lookahead(sgd(network()))), "Lookahead"),
    "failing": (Failing(), "Failing"),
    "endless": (Endless(), "Endless"),
    "itself": (circle(Box, "optimizer"), "Box"),
    "cycle": (circle(AcceleratedOptimizer, "optimizer"), "Box"),
    "fastai cycle": (circle(OptimWrapper, "opt"), "Box"),
}


@pytest.mark.parametrize(("optimizer", "name"), HOPELESS.values(), ids=HOPELESS)
def test_where_there_is_none_the_usual_sentence_says_so(optimizer, name):
    message = rf"^optimizer must be a torch.optim.Optimizer, but is a {name}; pass the optimizer that holds the model's"
    with pytest.raises(ParameterError, match=message):
        lookahead.unwrap(optimizer)
