"""Methods that go by the fraction of the training that is done, against their twins, which count steps."""

from __future__ import annotations

import pytest
from reference import ae_sam, ausam, late, sam, vsam
from reference.cases import LRS, MOMENTUM, PROBLEM, probes, some
from reference.drive import Run, trajectory
from reference.follow import BASES, STEPS, assert_follows
from reference.sampling import Indexed

from lowland import AESAM, ARSAM, AUSAM, GSAM, SAM, VSAM, Late, LookSAM, Plain, Renormalized, Switch
from lowland.core import schedule
from lowland.core.errors import ArgumentError, UsageError
from lowland.testing import check_method

assert STEPS == 12  # what the fractions below are of
WINDOW = {"rho": 0.1, "window": 4, "blocks": 2, "a1": 0.9}
DRAWN = {"rho": 0.1, "examples": 20, "alpha": 0.3, "fmax": 1.0}
PAIRS = {
    "ae-sam": (AESAM(rho=0.1), ae_sam.AESAM, {"rho": 0.1, "total": 12}),
    "ae-sam lagged": (AESAM(rho=0.1, lag=1), ae_sam.AESAM, {"rho": 0.1, "total": 12, "lag": 1}),
    "late": (Late(inner=SAM(rho=0.1), start=0.5), late.Late, {"start": 6, "inner": (sam.SAM, {"rho": 0.1})}),
    "late between": (Late(inner=SAM(rho=0.1), start=0.6), late.Late, {"start": 8, "inner": (sam.SAM, {"rho": 0.1})}),
    "vsam": (VSAM(**WINDOW, warmup=0.25), vsam.VSAM, {**WINDOW, "warmup": 3}),
    "vsam between": (VSAM(**WINDOW, warmup=0.2), vsam.VSAM, {**WINDOW, "warmup": 3}),
    "arsam": (ARSAM(**WINDOW, warmup=0.5), vsam.VSAM, {**WINDOW, "warmup": 6}),
    "ausam": (AUSAM(**DRAWN, ramp=0.75, warmup=1 / 6), ausam.AUSAM, {**DRAWN, "ramp": 9, "warmup": 2}),
    "ausam, ramp alone": (AUSAM(**DRAWN, ramp=0.75, warmup=2), ausam.AUSAM, {**DRAWN, "ramp": 9, "warmup": 2}),
}


@pytest.mark.parametrize("base_key", BASES)
@pytest.mark.parametrize("key", PAIRS)
def test_follows_the_twin_that_counts_steps(key, base_key):
    options = {"problem": Indexed(examples=20)} if key.startswith("ausam") else {}
    assert_follows(*PAIRS[key], base_key, total_steps=12, **options)


class Told(Run):
    """The caller says before every step how much is done."""

    told: list[float]

    def step(self, batch, lr):
        self.engine.progress = self.told[self.engine.step]
        return super().step(batch, lr)


def told(method, fractions, **options):
    run = Told(PROBLEM, PROBLEM.weights(1), method, MOMENTUM, **options)
    run.told = fractions
    return run


@pytest.mark.parametrize("options", [{}, {"total_steps": 1000}], ids=str)
def test_what_the_caller_sets_wins(options):
    run = told(Late(start=0.5), [0.0, 0.2, 0.49, 0.5, 0.9], **options)
    assert list(probes(run, some(5))) == [1, 1, 1, 2, 2]


def test_an_explicit_total_counts_the_method_s_own_steps():
    run = told(Late(start=0.5, total=4), [1.0] * 5)
    assert list(probes(run, some(5))) == [1, 1, 2, 2, 2]
    assert not AESAM(total=4).needs_progress


def test_the_warm_up_is_over_where_the_fraction_says_so():
    run = told(VSAM(rho=0.1, window=4, p_max=0.0, warmup=0.3), [0.0, 0.29, 0.3, 0.5, 0.6, 0.7])
    assert list(probes(run, some(6)))[:2] == [2, 2]
    assert run.engine.memory["t"] == 4  # the window's steps
    assert run.engine.memory["used"] == 1


def test_radii_by_hand():
    method = SAM(rho=schedule.linear(0.0, 0.4))
    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM, total_steps=4)
    radii = []
    for batch, lr in zip(some(6), LRS, strict=False):
        radii.append(run.engine.radii(method.rho, method.geometry))
        run.step(batch, lr)
    assert radii == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_switch_by_a_fraction():
    method = Switch(when=schedule.after(0.5), inner=SAM(), otherwise=Plain())
    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM, total_steps=6)
    assert list(probes(run, some(6))) == [1, 1, 1, 2, 2, 2]


def test_methods_inside_see_the_whole_training():
    """At three quarters of the training a warm-up of its first half is long over."""
    run = Run(
        PROBLEM,
        PROBLEM.weights(1),
        Late(inner=VSAM(window=4, p_max=0.0, warmup=0.5), start=0.75),
        MOMENTUM,
        total_steps=16,
    )
    assert sum(probes(run, some(10) + some(6))) == 16 + 1  # one refresh in the only window


NEEDING = {
    "Late": Late(start=0.9),
    "AESAM": AESAM(),
    "VSAM": VSAM(warmup=0.1),
    "AUSAM": AUSAM(examples=20, ramp=0.3),
    "SAM": SAM(rho=schedule.linear(0.0, 0.1)),
    "GSAM": GSAM(rho=schedule.cosine(0.0, 0.1, 0.5)),
    "Switch": Switch(when=schedule.after(0.5)),
    "Late(VSAM)": Late(start=3, inner=VSAM(warmup=0.1)),
    "Renormalized(AESAM)": Renormalized(inner=AESAM()),
    "Switch(SAM, AESAM)": Switch(inner=SAM(), otherwise=AESAM()),
}


@pytest.mark.parametrize("kind", NEEDING)
def test_without_progress_the_first_step_is_refused(kind):
    """Also where the fraction would be read later; weights and gradients are as before."""
    run = Run(PROBLEM, PROBLEM.weights(1), NEEDING[kind], MOMENTUM)
    before = run.w
    with pytest.raises(UsageError, match=r"engine.progress must be known, because .* goes by.*total_steps=10_000"):
        run.step(PROBLEM.batch(0), 0.1)
    assert all((a == b).all() for a, b in zip(before, run.w, strict=True))
    assert (run.engine.step, run.engine.cost.probes) == (0, 0)
    assert all(p.grad is None for p in run.engine.params)


@pytest.mark.parametrize(
    "method", [Late(start=3), VSAM(warmup=3), AUSAM(examples=9, ramp=3), LookSAM(), AESAM(total=9)]
)
def test_what_counts_steps_needs_no_progress(method):
    assert not method.needs_progress


@pytest.mark.parametrize("method", NEEDING.values(), ids=NEEDING)
def test_every_promise_holds(method):
    check_method(method)


@pytest.mark.parametrize("fields", [{"warmup": 1.0}, {"warmup": 0.0}, {"warmup": True}, {"warmup": "long"}], ids=str)
def test_bad_phases_are_refused(fields):
    with pytest.raises(ArgumentError, match="warmup must be an integer >= 0, in steps, or a fraction of the training"):
        VSAM(**fields)


def test_a_training_longer_than_was_said_stays_at_its_end():
    run = Run(PROBLEM, PROBLEM.weights(1), AESAM(), MOMENTUM, total_steps=3)
    trajectory(run, some(5), LRS[:5])
    assert run.engine.progress == 1.0
