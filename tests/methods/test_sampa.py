"""S1 to S11: what SAMPa's formulas imply.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from reference import drive
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same, sgd, trajectory
from reference.model import Batch, Logistic, Quadratic, parabola
from reference.vectors import add, dot, lerp, norm, scale

from lowland import SAM, Plain, SAMPa


def warm(run: Run, y, batch: Batch) -> None:
    """SAMPa's warm start: the gradient at y is known, and the batch it belongs to."""
    run.engine.memory["grad_y"] = drive.vec(y)
    run.engine.memory["batch"] = drive.to_torch(batch)


@pytest.mark.parametrize("base", BASES)
def test_s1_a_warm_start_begins_with_a_sam_step(base):
    w, first = PROBLEM.weights(1), PROBLEM.batch(0)
    run = Run(PROBLEM, w, SAMPa(rho=0.3, lam=0.0), BASES[base])
    warm(run, PROBLEM.gradient(w, first), first)
    other = Run(PROBLEM, w, SAM(rho=0.3), BASES[base])
    run.step(PROBLEM.batch(1), 0.1)
    other.step(first, 0.1)
    assert_same([run.w], [other.w], SAME)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("lam", [0.0, 0.2, 0.7, 1.0])
def test_s2_a_cold_start_begins_with_a_base_step(base, lam):
    batches = some(2)
    path = path_of(SAMPa(rho=0.3, lam=lam), batches, optimizer=BASES[base])
    plain = path_of(Plain(), batches, optimizer=BASES[base])
    assert_same(path[:1], plain[:1], SAME)
    assert_differ(path[1:], plain[1:])


def test_s3_at_lam_one_it_is_optimistic_gradient_descent():
    eta, batches = 0.1, some()
    x = PROBLEM.weights(1)
    g = PROBLEM.gradient(x, batches[0])
    x, expected = add(x, g, -eta), []
    expected.append(x)
    for batch in batches[1:]:
        y = add(x, g, -eta)
        g = PROBLEM.gradient(y, batch)
        x = add(x, g, -eta)
        expected.append(x)
    for rho in (0.0, 0.1, 3.0):
        path = path_of(SAMPa(rho=rho, lam=1.0), batches, [eta] * 10, optimizer=sgd())
        assert_same(path, expected, SAME)


@pytest.mark.parametrize("base", BASES)
def test_s4_without_radius_and_lam_it_descends_one_batch_late(base):
    batches = some()
    late = [batches[0], *batches[:-1]]
    path = path_of(SAMPa(rho=0.0, lam=0.0), batches, optimizer=BASES[base])
    assert_same(path, path_of(Plain(), late, optimizer=BASES[base]), SAME)


def test_s5_in_one_dimension_it_is_sam_while_signs_agree():
    problem, eta, steps = parabola(), 0.05, 14
    batch, w = problem.batch(0, noise=0.0), [np.array([3.0])]
    run = Run(problem, w, SAMPa(rho=0.3, lam=0.0))
    warm(run, problem.gradient(w, batch), batch)
    other = Run(problem, w, SAM(rho=0.3))
    for _ in range(steps):
        run.step(batch, eta)
        other.step(batch, eta)
        assert_same([run.w], [other.w], SAME)
        assert run.w[0][0] * run.engine.memory["grad_y"][0].item() > 0  # the premise: same sign at x and y


def test_s6_without_displacement_ahead_it_is_sam_with_a_stale_gradient(monkeypatch):
    batch, eta, rho = PROBLEM.batch(0), 0.1, 0.5
    w = PROBLEM.weights(1)
    run = Run(PROBLEM, w, SAMPa(rho=rho, lam=0.0))
    warm(run, PROBLEM.gradient(w, batch), batch)
    monkeypatch.setattr(run.engine, "lookahead", lambda grad, **_: [torch.zeros_like(g) for g in grad])
    path = trajectory(run, [batch] * 8, [eta] * 8)
    x, stale, expected = w, PROBLEM.gradient(w, batch), []
    for _ in range(8):
        g_s = PROBLEM.gradient(add(x, stale, rho / norm(stale)), batch)
        stale = PROBLEM.gradient(x, batch)
        x = add(x, g_s, -eta)
        expected.append(x)
    assert_same(path, expected, SAME)
    assert_differ(path, path_of(SAM(rho=rho), [batch] * 8, [eta] * 8, optimizer=sgd()))


def after_one_more_step(run: Run, method, optimizer, batch: Batch):
    """The weights after a step of `method` that starts where `run` stands."""
    fork = Run(PROBLEM, run.w, method, optimizer)
    fork.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    fork.engine.memory.update(grad_y=run.engine.memory["grad_y"], batch=run.engine.memory["batch"])
    fork.step(batch, 0.1)
    return fork.w


@pytest.mark.parametrize("base", BASES)
def test_s7_one_step_is_affine_in_lam(base):
    run = Run(PROBLEM, PROBLEM.weights(1), SAMPa(rho=0.2, lam=0.3), BASES[base])
    trajectory(run, some(4), LRS[:4])
    batch = PROBLEM.batch(9)
    at = {lam: after_one_more_step(run, SAMPa(rho=0.2, lam=lam), BASES[base], batch) for lam in (0.0, 0.37, 1.0)}
    if base == "adamw":  # which preconditions, and therefore is not
        assert_differ([at[0.37]], [lerp(at[0.0], at[1.0], 0.37)])
    else:
        assert_same([at[0.37]], [lerp(at[0.0], at[1.0], 0.37)], SAME)


def test_s8_the_ledger_of_batches():
    """Each batch serves once ahead and once, a step later, for ascent and descent together."""
    batches, log = some(6), []
    method = SAMPa(rho=0.2, lam=0.2)

    def logging(model, batch):
        log.append((float(batch[0][0, 0]), [p.detach().numpy().copy() for p in model.parameters()]))
        return PROBLEM.loss_fn(model, batch)

    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM, loss_fn=logging)
    marks = [float(b[0][0, 0]) for b in batches]
    assert len(set(marks)) == len(marks)
    run.step(batches[0], 0.1)
    assert [mark for mark, _ in log] == [marks[0], marks[0]]
    for t in range(1, 6):
        x, y = run.w, log[1][1]
        log.clear()
        run.step(batches[t], 0.1)
        (descent, at), (ahead, _) = log
        assert (descent, ahead) == (marks[t - 1], marks[t])
        moved = add(at, x, -1.0)
        # the ascent follows the gradient at y, on the very batch of the descent
        g = PROBLEM.gradient(y, batches[t - 1])
        assert_same([moved], [scale(g, 0.2 / norm(g))], SAME)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_s10_the_lookahead_is_where_a_clone_of_the_optimizer_would_land(base, steps):
    run = Run(PROBLEM, PROBLEM.weights(1), SAMPa(rho=0.2), BASES[base])
    trajectory(run, some(steps), LRS[:steps])
    grad = drive.vec(PROBLEM.gradient(run.w, PROBLEM.batch(9)))
    clone = PROBLEM.module(run.w)
    optimizer = BASES[base](clone.parameters())
    optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    for p, g in zip(clone.parameters(), grad, strict=True):
        p.grad = g.clone()
    optimizer.step()
    before = copy.deepcopy(run.optimizer.state_dict())
    ahead = drive.arrays(run.engine.lookahead(grad))
    assert_same([add(run.w, ahead)], [drive.arrays(clone.parameters())], SAME)
    torch.testing.assert_close(run.optimizer.state_dict(), before, rtol=0, atol=0)


def lyapunov_violations(problem, share: float, rho: float, lam: float, seed: int, steps: int = 60) -> int:
    """How often `V' <= V - eta (1 - eta L/2) ||g(x)||^2 + eta^2 rho^2 C` fails, y starting anywhere.

    Here `V = f(x) + 1/2 (1 - eta L) ||g(x) - g(y)||^2`, and `C = 1/2 (L^2 + L^3 + L^4 / (1 - c^2))` for any c
    with `eta < c / L`; c just above `eta L` makes the sharpest claim.
    """
    batch = problem.batch(seed)
    L = problem.smoothness(batch)
    eta = min(share / L, 0.99)
    C = 0.5 * (L**2 + L**3 + L**4 / (1.0 - (eta * L * (1 + 1e-9)) ** 2))
    x = problem.weights(seed)
    run = Run(problem, x, SAMPa(rho=rho, lam=lam))
    warm(run, problem.gradient(problem.weights(seed + 100), batch), batch)

    def state():
        g, g_y = problem.gradient(run.w, batch), drive.arrays(run.engine.memory["grad_y"])
        apart = add(g, g_y, -1.0)
        return problem.loss(run.w, batch) + 0.5 * (1 - eta * L) * dot(apart, apart), dot(g, g)

    violations = 0
    value, square = state()
    for _ in range(steps):
        run.step(batch, eta)
        bound = value - eta * (1 - eta * L / 2) * square + eta**2 * rho**2 * C
        value, square = state()
        violations += value > bound + 1e-12 * max(1.0, abs(bound))
    return violations


@pytest.mark.parametrize("rho", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["quadratic", "strongly convex", "logistic"])
def test_s11_the_lyapunov_function_falls(kind, share, rho):
    seed = int(10 * share)
    problem = {
        "quadratic": Quadratic.random(seed),
        "strongly convex": Quadratic.random(seed + 20, low=0.5, high=2.0),
        "logistic": Logistic(),
    }[kind]
    assert lyapunov_violations(problem, share, rho, lam=0.0, seed=seed) == 0


def test_s11_says_nothing_for_other_lam():
    """With lam > 0 the same inequality fails, so the test above can."""
    assert lyapunov_violations(Quadratic.random(0), share=0.1, rho=0.01, lam=0.5, seed=3) > 0
    assert lyapunov_violations(Logistic(), share=0.1, rho=0.01, lam=1.0, seed=3) > 0
