from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch
from conformance import TEXTS, method_of
from torch import nn

from lowland import METHODS, SAM, Engine, Method, Probe, SAMPa
from lowland.core import schedule
from lowland.core.errors import ArgumentError
from lowland.core.geometry import L2, Adaptive, Layerwise

# Methods around others have no radius of their own.
OWN = {key: kind for key, kind in METHODS.items() if key not in ("late", "stable-sam")}
every_class = pytest.mark.parametrize("kind", OWN.values(), ids=OWN)


@every_class
def test_methods_are_values(kind):
    assert kind(rho=0.2) == kind(rho=0.2)
    assert kind(rho=0.2) != kind(rho=0.3)
    assert hash(kind()) == hash(kind())
    assert "rho=0.2" in repr(kind(rho=0.2))
    assert dataclasses.replace(kind(rho=0.2), rho=0.3) == kind(rho=0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().rho = 0.2
    with pytest.raises(TypeError):
        kind(0.2)


@pytest.mark.parametrize("rho", [-0.1, -1, float("nan"), float("inf"), "0.1", None, True])
def test_a_bad_radius_is_refused(rho):
    with pytest.raises(ArgumentError, match=rf"rho must be a number >= 0, but is {rho!r}; rho=0 leaves the plain"):
        SAM(rho=rho)


@every_class
def test_a_bad_radius_is_refused_by_every_method(kind):
    with pytest.raises(ArgumentError, match=r"rho must be a number >= 0, but is -0\.1; rho=0 leaves the plain"):
        kind(rho=-0.1)


@every_class
def test_radius_zero_and_schedules_are_accepted(kind):
    assert kind(rho=0).rho == 0
    assert kind(rho=schedule.constant(0.1)).rho.at(0, 0.1) == 0.1


@pytest.mark.parametrize("geometry", ["l2", L2, None])
def test_a_bad_geometry_is_refused(geometry):
    with pytest.raises(ArgumentError, match=r"geometry must be a Geometry, but is .*; pass L2\(\), Adaptive"):
        SAM(geometry=geometry)


@every_class
def test_a_bad_geometry_is_refused_by_every_method(kind):
    with pytest.raises(ArgumentError, match=r"geometry must be a Geometry, but is 'l2'; pass L2\(\), Adaptive"):
        kind(geometry="l2")


@pytest.mark.parametrize("text", TEXTS.values())
def test_memory_starts_anew_for_every_engine(text):
    params = [torch.ones(2), torch.ones(())]
    one, other = method_of(text).init(params), method_of(text).init(params)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert not isinstance(value, list) or value is not other[key]


class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([-2.0], dtype=torch.float64))

    def forward(self, x):
        return x * (self.a.square().sum() + 2 * self.b.square().sum())


def make(method, lr: float = 0.1, **group) -> Engine:
    model = Quadratic()
    optimizer = torch.optim.SGD([{"params": model.parameters(), **group}], lr=lr)
    return Engine(method, model, optimizer, lambda m, x: m(x))


@pytest.mark.parametrize("geometry", [L2(), Adaptive(), Layerwise()])
def test_ascent_is_the_geometry_s_with_this_radius(geometry):
    engine = make(SAM(rho=0.3, geometry=geometry))
    grad = [torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)]
    found = engine.method.ascent(engine, grad)
    expected = geometry.ascent([p.detach() for p in engine.params], grad, 0.3)
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


def test_a_schedule_is_read_at_the_engine_s_step_and_learning_rate():
    one = torch.ones(1, dtype=torch.float64)
    engine = make(SAM(rho=schedule.linear(0.0, 0.4, steps=4)))
    grad = [torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)]
    for step in range(6):
        size = torch.cat(engine.method.ascent(engine, grad)).norm()
        assert float(size) == pytest.approx(0.1 * min(step, 4), abs=1e-12)
        engine.backward(one)
    engine = make(SAM(rho=schedule.follow_lr(0.2, 0.0, lr_high=0.1)))
    engine.optimizer.param_groups[0]["lr"] = 0.05
    assert float(torch.cat(engine.method.ascent(engine, grad)).norm()) == pytest.approx(0.1, rel=1e-6)


def test_a_group_s_radius_overrides_a_schedule():
    engine = make(SAM(rho=schedule.constant(0.4)), rho=0.1)
    grad = [torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)]
    assert float(torch.cat(engine.method.ascent(engine, grad)).norm()) == pytest.approx(0.1, rel=1e-9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halfway(Method):
    """A user's own method: the gradient halfway to the next weights."""

    share: float = 0.5
    needs_batch: ClassVar[bool] = False

    def plan(self, engine, batch):
        here = yield Probe(batch)
        step = engine.lookahead(here.grad)
        there = yield Probe(batch, at=[self.share * t for t in step])
        return here.loss, there.grad


def test_a_user_s_own_method_works():
    engine = make(Halfway())
    loss = engine.backward(torch.ones(1, dtype=torch.float64))
    assert float(loss) == 18.0
    torch.testing.assert_close(engine.params[0].grad, 2 * torch.tensor([3.0, 1.0], dtype=torch.float64) * 0.9)
    torch.testing.assert_close(engine.params[1].grad, 4 * torch.tensor([-2.0], dtype=torch.float64) * 0.8)
    assert engine.cost.gradients == 2


def test_by_default_memory_falls_back_to_what_it_was():
    memory = {"anything": [torch.ones(1)]}
    assert SAM().fallback(memory) is memory


def test_sampa_falls_back_to_a_cold_start():
    memory = {"grad_y": [torch.ones(2)], "batch": None}
    assert not SAMPa().fallback(memory)["grad_y"][0].any()
    assert memory["grad_y"][0].all()


FIELDS = {
    "lam < 0": (lambda: SAMPa(lam=-0.1), r"lam must be in \[0, 1\], but is -0.1; 0 is SAMPa-0 and 1 is optimistic"),
    "lam > 1": (lambda: SAMPa(lam=1.1), r"lam must be in \[0, 1\], but is 1.1; "),
    "lam nan": (lambda: SAMPa(lam=float("nan")), r"lam must be in \[0, 1\], but is nan; "),
    "lookahead": (lambda: SAMPa(lookahead="none"), "lookahead must be one of 'base', 'raw', but is 'none'; choose"),
    "k = 0": (lambda: METHODS["looksam"](k=0), "k must be an integer >= 1, but is 0; k=1 is SAM at every step"),
    "k = 2.0": (lambda: METHODS["looksam"](k=2.0), "k must be an integer >= 1, but is 2.0; "),
    "alpha": (lambda: METHODS["looksam"](alpha=-1), "alpha must be a number >= 0, but is -1; "),
    "decomposition": (lambda: METHODS["looksam"](decomposition="layer"), "must be one of 'global', 'tensor', but"),
    "m": (lambda: METHODS["micro-sam"](m=0), "m must be an integer >= 1, but is 0; m=1 is SAM"),
    "window": (lambda: METHODS["vsam"](window=0), "window must be an integer >= 1, but is 0; "),
    "blocks": (lambda: METHODS["vsam"](blocks=0), "blocks must be an integer >= 1, but is 0; "),
    "p_max": (lambda: METHODS["arsam"](p_max=1.5), r"p_max must be in \[0, 1\], but is 1.5; "),
    "a1": (lambda: METHODS["arsam"](a1=-1), "a1 must be a number >= 0, but is -1; "),
    "a2": (lambda: METHODS["arsam"](a2="1"), "a2 must be a number >= 0, but is '1'; "),
    "beta": (lambda: METHODS["arsam"](beta=2), r"beta must be in \[0, 1\], but is 2; "),
    "last": (lambda: METHODS["arsam"](last=0), "last must be an integer >= 1, but is 0; "),
    "warmup": (
        lambda: METHODS["arsam"](warmup=-1),
        "warmup must be an integer >= 0, in steps, or .*, but is -1; 0 begins with the first window",
    ),
}


@pytest.mark.parametrize(("make_it", "message"), FIELDS.values(), ids=FIELDS)
def test_bad_fields_are_refused(make_it, message):
    with pytest.raises(ArgumentError, match=message):
        make_it()
