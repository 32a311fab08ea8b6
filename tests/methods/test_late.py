"""P1, when the late part starts, and that it starts afresh.

Float64 throughout. What is equal in exact arithmetic agrees here bit for bit: Late only decides.
"""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from reference import drive
from reference.attacks import overflow
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, path_of, probes, some
from reference.drive import Run, assert_differ, assert_same, trajectory

from lowland import RST, SAM, VSAM, Late, LookSAM, MicroSAM, Plain, Renormalized, SAMPa
from lowland.core import schedule
from lowland.core.errors import ArgumentError, StateError, UsageError

INNER = {
    "sam": SAM(rho=0.3),
    "looksam": LookSAM(rho=0.3, k=3),
    "vsam": VSAM(rho=0.3, window=4, blocks=2, a1=0.9),
    "sampa": SAMPa(rho=0.3),
    "rst": RST(rho=0.3),
    "renormalized": Renormalized(inner=LookSAM(rho=0.3, k=3)),
    "late": Late(inner=LookSAM(rho=0.3, k=3), start=2),
}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)


@every_inner
@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_p1_from_the_start_it_is_the_inner_method(inner, base):
    path = path_of(Late(inner=inner, start=0), some(), optimizer=BASES[base])
    assert_same(path, path_of(inner, some(), optimizer=BASES[base]), 0.0)


@every_inner
@pytest.mark.parametrize("when", [{"start": 10}, {"start": 99}, {"start": 0.999, "total": 5000}], ids=str)
def test_p1_never_started_it_is_the_base_optimizer(inner, when):
    path = path_of(Late(inner=inner, **when), some())
    assert_same(path, path_of(Plain(), some()), 0.0)


@pytest.mark.parametrize("key", [key for key in INNER if key != "late"])  # whose start is a step of the training
@pytest.mark.parametrize("start", [1, 4])
def test_the_inner_method_begins_as_it_would_at_the_start_of_a_training(key, start):
    """The base optimizer goes on, momentum and all; the inner method's own steps begin at 0."""
    inner = INNER[key]
    late = Run(PROBLEM, PROBLEM.weights(1), Late(inner=inner, start=start), MOMENTUM)
    trajectory(late, some()[:start], LRS[:start])
    fresh = Run(PROBLEM, late.w, inner, MOMENTUM)
    fresh.optimizer.load_state_dict(copy.deepcopy(late.optimizer.state_dict()))
    rest = some()[start:], LRS[start:]
    assert_same(trajectory(late, *rest), trajectory(fresh, *rest), 0.0)


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_looksam_starts_with_a_refresh_wherever_it_starts(start):
    run = Run(PROBLEM, PROBLEM.weights(1), Late(inner=LookSAM(k=4), start=start), MOMENTUM)
    expected = [1] * start + [2 if t % 4 == 0 else 1 for t in range(10 - start)]
    assert list(probes(run, some())) == expected


def test_sampa_starts_cold_at_its_start():
    run = Run(PROBLEM, PROBLEM.weights(1), Late(inner=SAMPa(), start=3), MOMENTUM)
    plain = Run(PROBLEM, PROBLEM.weights(1), Plain(), MOMENTUM)
    for t, (batch, lr) in enumerate(zip(some(6), LRS, strict=False)):
        assert (run.engine.memory["batch"] is None) == (t <= 3)
        run.step(batch, lr)
        plain.step(batch, lr)
        if t <= 3:  # a cold start is a base step
            assert_same([run.w], [plain.w], 1e-14)
    assert_differ([run.w], [plain.w])


@pytest.mark.parametrize(("start", "total"), [(0.5, 10), (0.25, 10), (0.25, 8), (0.9, 10), (0.1, 10), (0.01, 10)])
def test_a_fraction_starts_at_that_share_of_the_steps(start, total):
    run = Run(PROBLEM, PROBLEM.weights(1), Late(start=start, total=total), MOMENTUM)
    first = next(t for t in range(total + 1) if t >= start * total)
    assert list(probes(run, some(10))) == [1 if t < first else 2 for t in range(10)]


def test_a_start_beside_a_total_is_a_step():
    run = Run(PROBLEM, PROBLEM.weights(1), Late(start=3, total=100), MOMENTUM)
    assert list(probes(run, some(5))) == [1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": -1}, "start must be an integer >= 0, in steps, or .*, but is -1; 0.9 is the last tenth"),
        ({"start": 1.5, "total": 9}, "start must be an integer >= 0, in steps, or .*, but is 1.5"),
        ({"start": 0.5, "total": 0}, "total must be an integer >= 1, but is 0"),
        ({"start": 0.5, "total": 9.5}, "total must be an integer >= 1, but is 9.5"),
        ({"start": float("nan"), "total": 9}, "start must be an integer >= 0, in steps, or .*, but is nan"),
        ({"start": "late"}, "start must be an integer >= 0, in steps, or .*, but is 'late'"),
        ({"start": True}, "start must be an integer >= 0, in steps, or .*, but is True"),
        ({"start": 1, "inner": "sam"}, "inner must be a Method, but is 'sam'; pass a value such as SAM"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        Late(**fields)


def test_without_a_start_it_is_a_value_but_does_not_train():
    method = Late(inner=SAM(rho=0.1))
    with pytest.raises(ArgumentError, match="start must be given before training, but is None; give the first step"):
        Run(PROBLEM, PROBLEM.weights(1), method)
    with pytest.raises(ArgumentError, match="start must be given"):
        Run(PROBLEM, PROBLEM.weights(1), Renormalized(inner=method))


def test_it_has_no_radius_of_its_own():
    with pytest.raises(TypeError, match="rho"):
        Late(rho=0.1, start=1)


@every_inner
def test_it_needs_what_the_inner_method_needs(inner):
    late = Late(inner=inner, start=3)
    assert (late.needs_batch, late.whole_gradient) == (inner.needs_batch, inner.whole_gradient)
    run = Run(PROBLEM, PROBLEM.weights(1), late)
    if inner.needs_batch:
        with pytest.raises(UsageError, match="a closure hides"):
            next(run.engine.passes())
    assert set(run.engine.memory) == set(Run(PROBLEM, PROBLEM.weights(1), inner).engine.memory)


def saved(engine, optimizer):
    file = io.BytesIO()
    torch.save([engine.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_inner
@pytest.mark.parametrize("stop", [1, 3, 4, 7])
def test_a_resumed_run_goes_on_bit_by_bit(inner, stop):
    method = Late(inner=inner, start=3)
    whole = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM)
    trajectory(whole, some()[:stop], LRS[:stop])
    resumed = Run(PROBLEM, whole.w, method, MOMENTUM, seed=99)
    engine, optimizer = saved(whole.engine, whole.optimizer)
    resumed.optimizer.load_state_dict(optimizer)
    resumed.engine.load_state_dict(engine)
    rest = some()[stop:], LRS[stop:]
    assert_same(trajectory(resumed, *rest), trajectory(whole, *rest), 0.0)


def test_the_state_of_another_inner_method_is_refused():
    run = Run(PROBLEM, PROBLEM.weights(1), Late(inner=LookSAM(), start=0), MOMENTUM)
    run.step(PROBLEM.batch(0), 0.1)
    other = Run(PROBLEM, run.w, Late(inner=VSAM(), start=0), MOMENTUM)
    with pytest.raises(StateError, match=r"comes from Late\(LookSAM\) and the engine runs Late\(VSAM\)"):
        other.engine.load_state_dict(run.engine.state_dict())


@pytest.mark.parametrize(
    "outer", [lambda m: Late(inner=m, start=1), lambda m: Renormalized(inner=Late(inner=m, start=1))]
)
def test_a_schedule_of_the_inner_radius_sees_the_training_s_step(outer):
    ramp, radii = schedule.linear(0.0, 1.0, 10), []
    method = outer(SAM(rho=ramp))
    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM)
    seen = []

    def watching(model, batch):
        seen.append(drive.arrays(model.parameters()))
        return PROBLEM.loss_fn(model, batch)

    run.engine.loss_fn = run.engine.work.loss_fn = watching
    for batch in some(5):
        seen.clear()
        before = run.w
        run.step(batch, 0.05)
        apart = [a - b for a, b in zip(seen[-1], before, strict=True)]
        radii.append(float(np.sqrt(sum((x**2).sum() for x in apart))))
    assert radii == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4], rel=1e-9)


@pytest.mark.parametrize(
    "outer", [lambda m: Late(inner=m, start=2), lambda m: Late(inner=Late(inner=m, start=2), start=1)]
)
def test_sampa_inside_goes_cold_after_an_overflow(outer):
    engine, _ = overflow(outer(SAMPa(rho=0.1)), steps=5, skipped=1)
    assert not any(g.any() for g in engine.memory["grad_y"])
    held, _ = engine.memory["batch"]
    np.testing.assert_array_equal(held.numpy(), PROBLEM.batch(4)[0].astype(np.float32))


def test_looksam_inside_keeps_its_vector_over_an_overflow():
    engine, before = overflow(Late(inner=LookSAM(rho=0.1, k=2), start=2), steps=5, skipped=1)
    # step 4 is a refresh, and its second pass overflows
    assert engine.memory["t"] == before["t"] + 1
    assert all(torch.equal(a, b) for a, b in zip(engine.memory["g_v"], before["g_v"], strict=True))
    assert any(g.any() for g in engine.memory["g_v"])


def test_micro_sam_inside_cuts_batches_only_late():
    run = Run(PROBLEM, PROBLEM.weights(1), Late(inner=MicroSAM(m=3), start=2), MOMENTUM)
    assert list(probes(run, some(4))) == [1, 1, 6, 6]
