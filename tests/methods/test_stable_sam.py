"""T1, what may stand inside a Renormalized and what may not.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from reference import drive
from reference.cases import LRS, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same, sgd, trajectory
from reference.model import Quadratic, flat
from reference.vectors import dot, norm

import lowland
from lowland import (
    AESAM,
    AUSAM,
    ESAM,
    GSAM,
    KSAM,
    RST,
    SAM,
    SAMON,
    SLSAM,
    VSAM,
    WSAM,
    XSAM,
    AsyncSAM,
    BiSAM,
    FriendlySAM,
    Late,
    LogitsSAM,
    LookSAM,
    MicroSAM,
    MomentumSAM,
    Plain,
    Probe,
    Renormalized,
    SAMPa,
    Switch,
    UnifiedSAM,
    VaSSO,
)
from lowland.core import vec
from lowland.core.errors import ArgumentError, UsageError

FITTING = {
    "plain": Plain(),
    "sam": SAM(rho=0.3),
    "looksam": LookSAM(rho=0.3, k=3),
    "vsam": VSAM(rho=0.3, window=4, blocks=2),
    "friendly-sam": FriendlySAM(rho=0.3),
    "gsam": GSAM(rho=0.3),
    "wsam": WSAM(rho=0.3),
    "rst": RST(rho=0.3),
    "unified-sam": UnifiedSAM(rho=0.3),
    "vasso": VaSSO(rho=0.3),
    "xsam": XSAM(rho=0.3, every=3),
    "ae-sam": AESAM(rho=0.3, total=10),
    "late": Late(inner=SAM(rho=0.3), start=4),
    "late looksam": Late(inner=LookSAM(rho=0.3, k=2), start=3),
    "renormalized": Renormalized(inner=SAM(rho=0.3)),
    "switch": Switch(inner=SAM(rho=0.3), otherwise=LookSAM(rho=0.2, k=2)),
}
REFUSED = [SAMPa(), MicroSAM(), MomentumSAM(), KSAM(), ESAM(), AUSAM(), SLSAM(), AsyncSAM(), BiSAM(), SAMON()]
REFUSED += [LogitsSAM()]


@pytest.mark.parametrize("inner", FITTING.values(), ids=FITTING)
def test_t1_the_direction_is_the_inner_one_at_the_gradient_s_length(inner):
    stable = Run(PROBLEM, PROBLEM.weights(1), Renormalized(inner=inner), MOMENTUM)
    free = Run(PROBLEM, PROBLEM.weights(1), inner, MOMENTUM)
    for batch, lr in zip(some(), LRS, strict=True):
        g = PROBLEM.gradient(stable.w, batch)
        with torch.no_grad():  # the same weights and buffers, so that only the last step differs
            for p, q in zip(free.model.parameters(), stable.model.parameters(), strict=True):
                p.copy_(q)
        free.step(batch, lr)
        stable.step(batch, lr)
        assert norm(stable.grad) == pytest.approx(norm(g), rel=1e-13)
        assert dot(stable.grad, free.grad) == pytest.approx(norm(stable.grad) * norm(free.grad), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1, 12])
def test_a_plain_gradient_stays_as_it_is_to_the_bit(dtype, depth):
    """Also with many small tensors, where norms are taken over a flat copy: the factor is exactly 1."""

    def weights(method):
        torch.manual_seed(3)
        layers = [module for _ in range(depth) for module in (torch.nn.Linear(5, 5), torch.nn.Tanh())]
        model = torch.nn.Sequential(*layers).to(dtype)
        engine = lowland.Engine(method, model, MOMENTUM(model.parameters()), lambda m, b: m(b).square().mean(1))
        draw = torch.Generator().manual_seed(1)
        for _ in range(5):
            engine.backward(torch.randn(7, 5, generator=draw).to(dtype))
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        return list(model.parameters())

    for a, b in zip(weights(Renormalized(inner=Plain())), weights(Plain()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("inner", REFUSED, ids=lambda m: type(m).__name__)
def test_what_never_asks_for_the_whole_gradient_is_refused_by_name(inner):
    with pytest.raises(ArgumentError, match=rf"inner must ask for the whole batch's.*{type(inner).__name__} does not"):
        Renormalized(inner=inner)


@pytest.mark.parametrize(
    "inner",
    [
        Late(inner=SAMPa(), start=3),
        Switch(inner=SAM(), otherwise=MicroSAM()),
        Switch(inner=MomentumSAM(), otherwise=SAM()),
    ],
    ids=["late", "switch", "switch first"],
)
def test_what_has_such_a_method_inside_is_refused_too(inner):
    with pytest.raises(ArgumentError, match="inner must ask for the whole batch's gradient"):
        Renormalized(inner=inner)


@pytest.mark.parametrize(
    "inner",
    [
        SAM(ascent_gradient="local"),
        Late(inner=GSAM(ascent_gradient="local"), start=3),
        Switch(inner=SAM(), otherwise=RST(ascent_gradient="local")),
    ],
    ids=["sam", "late", "switch"],
)
def test_the_length_of_a_gradient_that_each_rank_has_its_own_of_is_refused(inner):
    with pytest.raises(ArgumentError, match=r"inner must average its gradients over the ranks.*leave ascent_gradient"):
        Renormalized(inner=inner)


@pytest.mark.parametrize("inner", [None, "sam", SAM], ids=str)
def test_what_is_no_method_is_refused(inner):
    with pytest.raises(ArgumentError, match=r"inner must be a Method, but is .*; pass a value such as SAM"):
        Renormalized(inner=inner)


def test_it_has_no_radius_of_its_own():
    with pytest.raises(TypeError, match="rho"):
        Renormalized(rho=0.1)
    assert repr(Renormalized()) == "Renormalized(inner=SAM(rho=0.05, geometry=L2(select=None), ascent_gradient='mean'))"


class Apart(lowland.Method):
    """A user's method that keeps its gradient from being averaged and does not say so."""

    def plan(self, engine, batch):
        here = yield lowland.Probe(batch, sync=False)
        return here.loss, here.grad


def test_a_gradient_of_one_rank_has_not_the_length():
    run = Run(PROBLEM, PROBLEM.weights(1), Renormalized(inner=Apart()))
    with pytest.raises(
        UsageError, match=r"Renormalized needs an inner method that asks for .* averaged over the ranks"
    ):
        run.step(PROBLEM.batch(0), 0.1)


class Elsewhere(lowland.Method):
    """A user's method that looks at the gradient elsewhere only."""

    def plan(self, engine, batch):
        away = yield Probe(batch, at=vec.scale(vec.zeros(engine.params), 1.0))
        return away.loss, away.grad


class Half(lowland.Method):
    """A user's method whose unperturbed gradient is not the whole batch's."""

    def plan(self, engine, batch):
        some = yield Probe(lowland.core.batch.take(batch, torch.arange(3)))
        return some.loss, some.grad


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together(lowland.Method):
    """A user's method that asks for the whole gradient beside another."""

    count: int = 2

    def plan(self, engine, batch):
        drift = vec.scale([p.detach() for p in engine.params], 0.1)
        asked = [Probe(batch, at=drift), Probe(batch)][-self.count :]
        *_, here = away = yield tuple(asked)
        return here.loss, away[0].grad


@pytest.mark.parametrize("inner", [Elsewhere(), Half()], ids=lambda m: type(m).__name__)
def test_a_user_s_method_that_does_not_ask_is_refused_at_the_first_step(inner):
    run = Run(PROBLEM, PROBLEM.weights(1), Renormalized(inner=inner), MOMENTUM)
    before = run.w
    with pytest.raises(UsageError, match=rf"{type(inner).__name__} did not; use it without Renormalized"):
        run.step(PROBLEM.batch(0), 0.1)
    assert_same([run.w], [before], 0.0)
    assert run.engine.step == 0


@pytest.mark.parametrize("count", [1, 2])
def test_a_user_s_method_may_ask_for_it_among_others(count):
    run = Run(PROBLEM, PROBLEM.weights(1), Renormalized(inner=Together(count=count)))
    g = PROBLEM.gradient(run.w, PROBLEM.batch(0))
    run.step(PROBLEM.batch(0), 0.1)
    assert norm(run.grad) == pytest.approx(norm(g), rel=1e-13)
    if count == 2:
        assert_differ([run.grad], [g])


def test_looksam_inside_reuses_its_part_before_it_is_rescaled():
    free, stable = (
        path_of(method, some(), optimizer=sgd())
        for method in (LookSAM(rho=0.4, k=3), Renormalized(inner=LookSAM(rho=0.4, k=3)))
    )
    assert_differ(free, stable)
    run = Run(PROBLEM, PROBLEM.weights(1), Renormalized(inner=LookSAM(rho=0.4, k=3)))
    for batch in some(3):
        g = PROBLEM.gradient(run.w, batch)
        run.step(batch, 0.1)
    assert norm(drive.arrays(run.engine.memory["g_v"])) == pytest.approx(1.0, rel=1e-9)  # memory is not rescaled
    assert abs(dot(run.grad, g)) < (1 - 1e-3) * norm(g) ** 2


def test_a_zero_gradient_is_a_zero_direction():
    """At the minimum g is zero and SAM's gradient too; at a dead start the base still decays the weights."""
    problem = Quadratic(np.eye(4), np.zeros(4))
    run = Run(problem, [np.zeros(4)], Renormalized(inner=SAM(rho=0.1)))
    run.step(problem.batch(0, noise=0.0), 0.1)
    assert norm(run.grad) == norm(run.w) == 0.0
    dead = flat()
    nothing = np.zeros((6, 4)), np.zeros(6)
    path = path_of(Renormalized(), [nothing] * 3, problem=dead, optimizer=sgd(weight_decay=0.1))
    np.testing.assert_allclose(path[0][0], dead.weights(1)[0] * (1 - LRS[0] * 0.1), rtol=1e-14)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_does_not_look_finite(value):
    run = Run(PROBLEM, PROBLEM.weights(1), Renormalized(), MOMENTUM)
    inputs, targets = PROBLEM.batch(0)
    inputs[0, 0] = value
    run.engine.backward(drive.to_torch((inputs, targets)))
    assert not any(np.isfinite(x).all() for x in run.grad[:1])


def test_without_radius_it_is_the_base_optimizer():
    same = path_of(Renormalized(inner=SAM(rho=0.0)), some())
    assert_same(same, path_of(Plain(), some()), SAME)


@pytest.mark.parametrize("inner", [FITTING["looksam"], FITTING["late looksam"], FITTING["switch"]], ids=repr)
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_run_goes_on_bit_by_bit(inner, stop):
    whole = Run(PROBLEM, PROBLEM.weights(1), Renormalized(inner=inner), MOMENTUM)
    trajectory(whole, some()[:stop], LRS[:stop])
    file = io.BytesIO()
    torch.save([whole.engine.state_dict(), whole.optimizer.state_dict()], file)
    file.seek(0)
    engine, optimizer = torch.load(file, weights_only=True)
    resumed = Run(PROBLEM, whole.w, Renormalized(inner=inner), MOMENTUM)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.engine.load_state_dict(engine)
    rest = some()[stop:], LRS[stop:]
    assert_same(trajectory(resumed, *rest), trajectory(whole, *rest), 0.0)
