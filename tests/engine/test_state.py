from __future__ import annotations

import collections
import copy
import io
import re

import pytest
import torch
from conformance import TEXTS, method_of
from torch import nn

from lowland import (
    ARSAM,
    METHODS,
    SAM,
    SAMON,
    BiSAM,
    Criterion,
    Engine,
    FunctionalSAM,
    LogitsSAM,
    LookSAM,
    MicroSAM,
    SAMPa,
)
from lowland.core import schedule
from lowland.core.errors import StateError

CASES = {
    **{key: method_of(text) for key, text in TEXTS.items() if key != "ausam"},  # wants indices, see its own tests
    "sam-on": SAMON(extra=lambda module, name, parameter: True),
    "logits-sam": LogitsSAM(),
    "bisam": BiSAM(surrogate=lambda model, batch: loss_fn(model, batch)),
    "plain": METHODS["plain"](),
    "sam": SAM(rho=schedule.linear(0.1, 0.2, 10)),
    "sampa": SAMPa(),
    "looksam": LookSAM(k=3),
    "micro-sam": MicroSAM(m=2),
    "vsam": METHODS["vsam"](window=3),
    "arsam": ARSAM(window=4, warmup=1),
}
every_method = pytest.mark.parametrize("method", CASES.values(), ids=CASES)


def test_all_methods_are_here():
    assert {*CASES, "ausam"} == set(METHODS)


class Net(nn.Module):
    def __init__(self, width: int = 3):
        super().__init__()
        self.body = nn.Linear(2, width)
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class Other(Net):
    """The same shapes under other names."""

    def __init__(self):
        super().__init__()
        self.trunk = self.body
        del self.body

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x)))


def loss_fn(model, batch):
    x, y = batch
    return (model(x)[:, 0] - y).square()


in_parts = Criterion(lambda model, batch: model(batch[0])[:, 0], lambda out, batch: (out - batch[1]).square())


def make(method, model=None) -> Engine:
    torch.manual_seed(0)
    model = Net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Engine(method, model, optimizer, in_parts if isinstance(method, FunctionalSAM) else loss_fn, seed=5)


def batch(step: int):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(4, 2, generator=generator), torch.randn(4, generator=generator)


def train(engine: Engine, steps) -> list[torch.Tensor]:
    for step in steps:
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return [p.detach().clone() for p in engine.params]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(engine: Engine) -> Engine:
    other = make(engine.method)
    other.model.load_state_dict(engine.model.state_dict())
    other.optimizer.load_state_dict(copy.deepcopy(engine.optimizer.state_dict()))
    other.load_state_dict(state_dict=through_a_file(engine.state_dict()))
    return other


@every_method
@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_resume_goes_on_bit_for_bit(method, after):
    engine = make(method)
    train(engine, range(after))
    other = resumed(engine)
    assert other.step == engine.step == after
    for a, b in zip(train(engine, range(after, 12)), train(other, range(after, 12)), strict=True):
        assert torch.equal(a, b)
    cost, other_cost = copy.copy(engine.cost), copy.copy(other.cost)
    cost.seconds = other_cost.seconds = 0.0
    assert cost == other_cost
    assert engine.rng.random() == other.rng.random()


@every_method
def test_loading_into_an_engine_under_way_rewinds_it(method):
    engine = make(method)
    train(engine, range(2))
    saved = through_a_file(engine.state_dict())
    weights, base = copy.deepcopy(engine.model.state_dict()), copy.deepcopy(engine.optimizer.state_dict())
    expected = train(engine, range(2, 9))
    engine.model.load_state_dict(weights)
    engine.optimizer.load_state_dict(base)
    engine.load_state_dict(saved)
    assert all(torch.equal(a, b) for a, b in zip(train(engine, range(2, 9)), expected, strict=True))


@every_method
def test_a_state_does_not_change_while_training_goes_on(method):
    engine = make(method)
    train(engine, range(3))
    state = engine.state_dict()
    before = through_a_file(state)
    train(engine, range(3, 9))
    assert_same(state, before)


@every_method
def test_loaded_tensors_are_copies(method):
    engine = make(method)
    train(engine, range(3))
    state = copy.deepcopy(engine.state_dict())
    engine.load_state_dict(state)
    for tensor in torch.utils._pytree.tree_leaves(state):
        if isinstance(tensor, torch.Tensor):
            tensor.fill_(99)
    for tensor in torch.utils._pytree.tree_leaves(engine.memory):
        assert not isinstance(tensor, torch.Tensor) or not (tensor == 99).any()


def test_vectors_are_keyed_by_parameter_name():
    engine = make(LookSAM())
    train(engine, range(1))
    vectors = engine.state_dict()["vectors"]
    assert list(vectors) == ["g_v"]
    assert list(vectors["g_v"]) == ["body.weight", "body.bias", "head.weight", "head.bias"]
    assert torch.equal(vectors["g_v"]["head.weight"], engine.memory["g_v"][2])


def test_a_compiled_model_s_state_fits_the_plain_one():
    torch.manual_seed(0)
    engine = make(LookSAM(), torch.compile(Net(), backend="eager"))
    train(engine, range(2))
    other = make(LookSAM())
    other.load_state_dict(through_a_file(engine.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(engine.memory["g_v"], other.memory["g_v"], strict=True))


def test_order_of_names_does_not_matter():
    engine = make(LookSAM())
    train(engine, range(1))
    state = engine.state_dict()
    state["vectors"] = {k: dict(reversed(v.items())) for k, v in state["vectors"].items()}
    before = engine.memory["g_v"]
    engine.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(engine.memory["g_v"], before, strict=True))


class Table(nn.Module):
    """One parameter of the very shape of an index batch."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, index):
        return self.w[index]


def test_a_held_batch_is_no_vector_whatever_its_shape():
    model = Table()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(SAMPa(), model, optimizer, lambda m, b: m(b[0]).square())
    engine.backward([torch.tensor([3, 0, 0, 1])])
    engine.load_state_dict(through_a_file(engine.state_dict()))
    assert engine.memory["batch"][0].dtype is torch.int64
    engine.backward([torch.tensor([2, 2, 1, 0])])


# What is refused, without a change


def assert_same(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def refused(engine: Engine, state, message: str) -> None:
    before = copy.deepcopy(engine.state_dict())
    with pytest.raises(StateError, match=message):
        engine.load_state_dict(state)
    assert_same(engine.state_dict(), before)


@every_method
def test_another_method_s_state_is_refused(method):
    other = make(SAM() if type(method) is not SAM else LookSAM())
    train(other, range(2))
    engine = make(method)
    train(engine, range(3))
    theirs, ours = other.method.kind, re.escape(method.kind)
    refused(engine, other.state_dict(), f"same method, but comes from {theirs} and the engine runs {ours}; make")


@every_method
def test_another_model_s_state_is_refused(method):
    for model in (Other(), Net(width=5)):
        other = make(method, model)
        train(other, range(2))
        engine = make(method)
        train(engine, range(3))
        refused(engine, other.state_dict(), "same model.*the model it was taken from")


def test_what_is_no_engine_state_is_refused():
    engine = make(LookSAM())
    refused(engine, engine.model.state_dict(), r"lacks method, .*step.*not the model's or the optimizer's")
    refused(engine, engine.optimizer.state_dict(), "lacks method, parameters, step")
    refused(engine, {}, r"lacks method")


def damaged(**changes):
    engine = make(ARSAM())
    train(engine, range(3))
    return {**copy.deepcopy(engine.state_dict()), **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"values": {}},
        {"vectors": {}},
        {"vectors": {"psf": {}}},
        {"vectors": None},
        {"lagged": {"norms": "0.1"}},
        {"rng": (3, (), None)},
        {"rng": "state"},
        {"step": "3"},
        {"cost": None},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_nothing_changes(changes):
    engine = make(ARSAM())
    train(engine, range(5))
    refused(engine, damaged(**changes), "state_dict must")


def test_a_batch_that_could_not_be_loaded_again_is_refused_when_saved():
    Pair = collections.namedtuple("Pair", "inputs scale")
    model = nn.Linear(3, 1)
    engine = Engine(SAMPa(), model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, b: m(b.inputs).mean(1))
    engine.backward(Pair(torch.ones(4, 3), torch.ones(4)))
    with pytest.raises(StateError, match="holds a Pair; let the loader give plain tuples or dicts"):
        engine.state_dict()
