"""What the formulas imply, one test per invariant: G1 to G6 hold for all methods, A1 and A2 for SAM.

Float64 throughout. Where two computations are equal in exact arithmetic they agree here to `SAME`, which is
rounding times a few dozen steps; where the bits must match, `torch.equal` or `assert_array_equal` says so.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from reference import drive
from reference.drive import Run, adamw, assert_same, sgd, trajectory
from reference.model import MLP, Batch, Logistic, Quadratic, concatenate, flat, parabola, take
from reference.vectors import add, dot, lerp, norm, scale, zeros

from lowland.methods import ARSAM, SAM, VSAM, LookSAM, MicroSAM, Plain, SAMPa

SAME = 1e-11
PROBLEM = MLP()
LRS = [0.1, 0.2, 0.15, 0.05, 0.1, 0.3, 0.1, 0.02, 0.1, 0.1]
MOMENTUM = sgd(momentum=0.9, weight_decay=5e-4)
BASES = {
    "sgd": sgd(),
    "momentum": MOMENTUM,
    "nesterov": sgd(momentum=0.9, nesterov=True, weight_decay=5e-4),
    "dampening": sgd(momentum=0.9, dampening=0.3, weight_decay=5e-4),
    "adamw": adamw(weight_decay=0.05),
}
ALL = {
    "plain": lambda rho: Plain(),
    "sam": lambda rho: SAM(rho=rho),
    "sampa": lambda rho: SAMPa(rho=rho),
    "sampa-0": lambda rho: SAMPa(rho=rho, lam=0.0),
    "looksam": lambda rho: LookSAM(rho=rho, k=3),
    "micro-sam": lambda rho: MicroSAM(rho=rho, m=3),
    "vsam": lambda rho: VSAM(rho=rho, window=5, warmup=2, last=2),
    "arsam": lambda rho: ARSAM(rho=rho, window=4, last=2),
}
every_method = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


def some(steps: int = len(LRS), problem=PROBLEM) -> list[Batch]:
    return [problem.batch(t) for t in range(steps)]


def path_of(method, batches, lrs=None, *, problem=PROBLEM, optimizer=MOMENTUM, **options):
    run = Run(problem, problem.weights(1), method, optimizer, **options)
    return trajectory(run, batches, lrs or (LRS * 9)[: len(batches)])


def warm(run: Run, y, batch: Batch) -> None:
    """SAMPa's warm start: the gradient at y is known, and the batch it belongs to."""
    run.engine.memory["grad_y"] = drive.vec(y)
    run.engine.memory["batch"] = drive.to_torch(batch)


def assert_differ(path, other) -> None:
    """The counterpart of `assert_same`: what the test is about does make a difference."""
    pairs = [pair for a, b in zip(path, other, strict=True) for pair in zip(a, b, strict=True)]
    assert max(float(np.abs(x - y).max()) for x, y in pairs) > 1e-6


def probes(run: Run, batches, lrs=None) -> Iterator[int]:
    """Steps through the batches and says how many probes each step asked."""
    for batch, lr in zip(batches, lrs or (LRS * 20)[: len(batches)], strict=True):
        before = run.engine.cost.probes
        run.step(batch, lr)
        yield run.engine.cost.probes - before


# ---------------------------------------------------------------- all methods


@every_method
@pytest.mark.parametrize("base", BASES)
def test_g1_without_radius_it_is_the_base_optimizer(make, base):
    if make is ALL["sampa"]:
        pytest.skip("lam > 0 mixes in optimistic gradient descent")
    # SAMPa descends on the batch before; on one batch all the time that is the same batch
    batches = [PROBLEM.batch(0)] * 10 if make is ALL["sampa-0"] else some()
    optimizer = BASES[base]
    same = path_of(make(0.0), batches, optimizer=optimizer)
    plain = path_of(Plain(), batches, optimizer=optimizer)
    # Adam divides by the root of a squared gradient, which magnifies rounding of small ones
    assert_same(same, plain, 1e-9 if base == "adamw" else SAME)
    if make is not ALL["plain"]:
        assert_differ(path_of(make(0.3), batches, optimizer=optimizer), plain)


@every_method
def test_g2_backward_leaves_the_weights_as_they_were(make):
    run = Run(PROBLEM, PROBLEM.weights(1), make(0.3), MOMENTUM)
    for batch in some(6):
        before = run.w
        run.optimizer.zero_grad()
        run.engine.backward(drive.to_torch(batch))
        for x, y in zip(before, run.w, strict=True):
            np.testing.assert_array_equal(x, y)
        run.optimizer.step()


@every_method
def test_g3_a_zero_gradient_is_no_nan_and_the_base_still_steps(make):
    problem = flat()
    nothing = np.zeros((6, 4)), np.zeros(6)
    # dead batches from the start, then a live one, then dead ones again
    batches = [nothing, nothing, problem.batch(0), nothing, nothing, nothing]
    path = path_of(make(0.1), batches, problem=problem, optimizer=sgd(weight_decay=0.1))
    assert all(np.isfinite(w[0]).all() for w in path)
    first = problem.weights(1)[0] * (1 - LRS[0] * 0.1)
    np.testing.assert_allclose(path[0][0], first, rtol=1e-14)


class Spare(MLP):
    """An MLP with a parameter that the loss never reaches."""

    def module(self, w):
        model = super().module(w)
        model.register_parameter("spare", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
        return model


@every_method
def test_g4_a_parameter_without_gradient_is_untouched(make):
    run = Run(Spare(), PROBLEM.weights(1), make(0.2), MOMENTUM)
    path = []
    for batch, lr in zip(some(), LRS, strict=True):
        run.step(batch, lr)
        path.append(run.w[1:])  # a module's own parameters come before those of its children
    assert run.model.spare.grad is None
    assert torch.equal(run.model.spare.detach(), torch.ones(3, dtype=torch.float64))
    assert_same(path, path_of(make(0.2), some()))


@every_method
@pytest.mark.parametrize("factor", [1e3, 1e-3])
def test_g5_the_scale_of_the_loss_does_not_change_the_perturbation(make, factor):
    def scaled(model, batch):
        return factor * PROBLEM.loss_fn(model, batch)

    lrs = [lr / factor for lr in LRS]
    path = path_of(make(0.2), some(), lrs, optimizer=sgd(momentum=0.9), loss_fn=scaled)
    # the 1e-12 added to norms is felt once the gradient is a thousand times smaller
    assert_same(path, path_of(make(0.2), some(), optimizer=sgd(momentum=0.9)), 1e-8)


@every_method
@pytest.mark.parametrize("stop", [1, 5, 7])
def test_g6_a_resumed_run_goes_on_bit_by_bit(make, stop):
    batches, lrs = some(), LRS
    whole = Run(PROBLEM, PROBLEM.weights(1), make(0.2), MOMENTUM)
    trajectory(whole, batches[:stop], lrs[:stop])
    file = io.BytesIO()
    state = {"engine": whole.engine.state_dict(), "optimizer": whole.optimizer.state_dict()}
    torch.save(state, file)
    weights = whole.w
    expected = trajectory(whole, batches[stop:], lrs[stop:])

    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed = Run(PROBLEM, weights, make(0.2), MOMENTUM)
    resumed.optimizer.load_state_dict(loaded["optimizer"])
    resumed.engine.load_state_dict(loaded["engine"])
    assert resumed.engine.step == stop
    for a, b in zip(trajectory(resumed, batches[stop:], lrs[stop:]), expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


# ---------------------------------------------------------------- SAM


@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_a1_on_a_quadratic_the_sam_gradient_is_known(rho):
    problem = Quadratic.random(2)
    run = Run(problem, problem.weights(1), SAM(rho=rho))
    for batch in some(5, problem):
        g = problem.gradient(run.w, batch)[0]
        run.step(batch, 0.1)
        np.testing.assert_allclose(run.grad[0] - g, rho * problem.A @ g / np.linalg.norm(g), rtol=1e-9)


@pytest.mark.parametrize(("eta", "rho"), [(0.1, 0.5), (0.3, 0.1), (0.45, 1.0)])
def test_a2_on_a_parabola_it_ends_in_a_two_cycle(eta, rho):
    problem = parabola()
    run = Run(problem, [np.array([1.7])], SAM(rho=rho))
    path = [w[0][0] for w in trajectory(run, [problem.batch(0, noise=0.0)] * 150, [eta] * 150)]
    np.testing.assert_allclose(np.abs(path[-4:]), eta * rho / (1 - eta), rtol=1e-9)
    assert path[-1] * path[-2] < 0


# ---------------------------------------------------------------- SAMPa


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
    at = {
        lam: after_one_more_step(run, SAMPa(rho=0.2, lam=lam), BASES[base], batch) for lam in (0.0, 0.37, 1.0)
    }
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


def lyapunov_violations(problem, share: float, rho: float, lam: float, seed: int, steps: int = 100) -> int:
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


# ---------------------------------------------------------------- LookSAM


@pytest.mark.parametrize("base", BASES)
def test_l1_refreshed_always_it_is_sam(base):
    path = path_of(LookSAM(rho=0.2, k=1), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


def test_l2_without_reuse_it_is_sam_now_and_then():
    k, batches = 3, some()
    run = Run(PROBLEM, PROBLEM.weights(1), LookSAM(rho=0.2, k=k, alpha=0.0))
    x = PROBLEM.weights(1)
    for t, batch in enumerate(batches):
        run.step(batch, 0.1)
        g = PROBLEM.gradient(x, batch)
        d = PROBLEM.gradient(add(x, g, 0.2 / norm(g)), batch) if t % k == 0 else g
        x = add(x, d, -0.1)
        assert_same([run.w], [x], SAME)


def test_l3_the_reused_part_is_orthogonal_and_completes_the_gradient():
    run = Run(PROBLEM, PROBLEM.weights(1), LookSAM(rho=0.3, k=2))
    for t, batch in enumerate(some()):
        g = PROBLEM.gradient(run.w, batch)
        run.step(batch, 0.1)
        if t % 2 == 0:
            g_v, g_s = drive.arrays(run.engine.memory["g_v"]), run.grad
            assert norm(g_v) > 1e-3 * norm(g_s)
            assert abs(dot(g_v, g)) <= 1e-13 * norm(g_s) * norm(g)
            assert_same([add(g_v, g, dot(g, g_s) / dot(g, g))], [g_s], SAME)


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_l4_the_reused_part_has_a_set_length(alpha):
    run = Run(PROBLEM, PROBLEM.weights(1), LookSAM(rho=0.3, k=4, alpha=alpha))
    for t, batch in enumerate(some()):
        g = PROBLEM.gradient(run.w, batch)
        run.step(batch, 0.1)
        if t % 4:
            assert norm(add(run.grad, g, -1.0)) == pytest.approx(alpha * norm(g), rel=1e-9)


@pytest.mark.parametrize(("k", "steps"), [(1, 4), (3, 9), (3, 10), (5, 12)])
def test_l5_the_number_of_gradients(k, steps):
    calls = []

    def counting(model, batch):
        calls.append(None)
        return PROBLEM.loss_fn(model, batch)

    run = Run(PROBLEM, PROBLEM.weights(1), LookSAM(k=k), loss_fn=counting)
    asked = list(probes(run, some(steps)))
    assert sum(asked) == len(calls) == steps + -(-steps // k)
    assert asked == [2 if t % k == 0 else 1 for t in range(steps)]


@pytest.mark.parametrize("factor", [1e-4, 50.0])
def test_l6_the_length_of_the_kept_part_is_immaterial(factor):
    run, scaled = (Run(PROBLEM, PROBLEM.weights(1), LookSAM(rho=0.3, k=4), MOMENTUM) for _ in range(2))
    batches = some(4)
    run.step(batches[0], 0.1)
    scaled.step(batches[0], 0.1)
    scaled.engine.memory["g_v"] = [factor * v for v in scaled.engine.memory["g_v"]]
    lrs = [0.1] * 3
    assert_same(trajectory(run, batches[1:], lrs), trajectory(scaled, batches[1:], lrs), 1e-8)


def test_looksam_does_not_reuse_rounding_noise():
    """On a round quadratic g_s is parallel to g: what is left is rounding and must not be magnified."""
    problem = Quadratic(1.7 * np.eye(4), np.array([0.3, -1.1, 0.7, 2.0]))
    run = Run(problem, problem.weights(1), LookSAM(rho=0.1, k=5, alpha=0.7))
    for batch in some(10, problem):
        g = problem.gradient(run.w, batch)
        run.step(batch, 0.05)
        assert norm(drive.arrays(run.engine.memory["g_v"])) == 0.0
        along = dot(run.grad, g) / (norm(run.grad) * norm(g))
        assert along == pytest.approx(1.0, abs=1e-14)


def test_looksam_keeps_all_of_the_sam_gradient_where_the_gradient_is_zero():
    problem = Quadratic(np.eye(4), np.zeros(4))
    run = Run(problem, [np.zeros(4)], LookSAM(rho=0.1, k=2))
    run.step(problem.batch(0, noise=0.0), 0.1)
    assert norm(drive.arrays(run.engine.memory["g_v"])) == 0.0
    assert norm(run.grad) == 0.0
    np.testing.assert_array_equal(run.w[0], np.zeros(4))


# ---------------------------------------------------------------- mSAM


@pytest.mark.parametrize("base", BASES)
def test_m1_one_micro_batch_is_sam(base):
    path = path_of(MicroSAM(rho=0.2, m=1), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@pytest.mark.parametrize("m", [2, 5])
def test_m2_identical_micro_batches_are_sam_on_one(m):
    batches = some()
    path = path_of(MicroSAM(rho=0.2, m=m), [concatenate(*[b] * m) for b in batches])
    assert_same(path, path_of(SAM(rho=0.2), batches), SAME)


@pytest.mark.parametrize("m", [3, 5, 12, 100])
def test_m3_without_radius_it_is_the_gradient_of_the_batch(m):
    assert_same(path_of(MicroSAM(rho=0.0, m=m), some()), path_of(Plain(), some()), SAME)


def test_m4_the_order_of_micro_batches_is_immaterial():
    batches, rng = some(), np.random.default_rng(0)
    permuted = []
    for batch in batches:
        order = rng.permutation(4)
        permuted.append(take(batch, np.concatenate([np.arange(3 * j, 3 * j + 3) for j in order])))
    path = path_of(MicroSAM(rho=0.3, m=4), batches)
    assert_same(path, path_of(MicroSAM(rho=0.3, m=4), permuted), SAME)
    mixed = [take(batch, rng.permutation(12)) for batch in batches]
    assert_differ(path, path_of(MicroSAM(rho=0.3, m=4), mixed))


@pytest.mark.parametrize("m", [12, 50])
def test_m6_micro_batches_of_one_average_sam_gradients_of_examples(m):
    run = Run(PROBLEM, PROBLEM.weights(1), MicroSAM(rho=0.3, m=m))
    for batch in some(4):
        w, total = run.w, zeros(run.w)
        for i in range(12):
            one = take(batch, np.array([i]))
            g = PROBLEM.gradient(w, one)
            total = add(total, PROBLEM.gradient(add(w, g, 0.3 / norm(g)), one), 1 / 12)
        run.step(batch, 0.1)
        assert_same([run.grad], [total], SAME)


def test_m7_where_the_gradient_is_constant_it_is_sgd():
    problem = flat()
    batches = some(10, problem)
    path = path_of(MicroSAM(rho=0.7, m=3), batches, problem=problem)
    assert_same(path, path_of(Plain(), batches, problem=problem), SAME)


def test_micro_sam_cuts_nine_examples_into_four():
    sizes = []

    def counting(model, batch):
        sizes.append(len(batch[0]))
        return PROBLEM.loss_fn(model, batch)

    run = Run(PROBLEM, PROBLEM.weights(1), MicroSAM(m=4), loss_fn=counting)
    run.step(PROBLEM.batch(0, 9), 0.1)
    assert sorted(sizes) == [2, 2, 2, 2, 2, 2, 3, 3]
    assert run.engine.cost.gradients == pytest.approx(2.0)


# ---------------------------------------------------------------- vSAM, ARSAM

windows = pytest.mark.parametrize("kind", [VSAM, ARSAM])


@windows
def test_v1_psf_is_what_sam_adds(kind):
    run = Run(PROBLEM, PROBLEM.weights(1), kind(rho=0.3, window=4, warmup=2), MOMENTUM)
    refreshes = 0
    for batch in some():
        g = PROBLEM.gradient(run.w, batch)
        if next(probes(run, [batch])) == 2:
            assert_same([add(g, drive.arrays(run.engine.memory["psf"]))], [run.grad], SAME)
            refreshes += 1
    assert 4 <= refreshes < 10


@windows
@pytest.mark.parametrize("fields", [{"warmup": 10}, {"window": 1}], ids=["warmup", "window"])
@pytest.mark.parametrize("base", BASES)
def test_v2_refreshed_always_it_is_sam(kind, fields, base):
    path = path_of(kind(rho=0.2, **fields), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@windows
def test_v3_without_reuse_it_alternates_sam_and_the_base(kind):
    run = Run(PROBLEM, PROBLEM.weights(1), kind(rho=0.2, window=3, beta=0.0), MOMENTUM)
    seen = set()
    for batch in some(12):
        w, g = run.w, PROBLEM.gradient(run.w, batch)
        asked = next(probes(run, [batch]))
        seen.add(asked)
        d = PROBLEM.gradient(add(w, g, 0.2 / norm(g)), batch) if asked == 2 else g
        assert_same([run.grad], [d], SAME)
    assert seen == {1, 2}


@windows
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("window", "p_max"), [(8, 0.8), (10, 0.25), (3, 0.1)])
def test_v4_every_window_has_its_number_of_refreshes(kind, seed, window, p_max):
    method = kind(rho=0.4, window=window, p_max=p_max, a1=0.9, a2=0.9, blocks=2, last=2, warmup=2)
    run = Run(PROBLEM, PROBLEM.weights(1), method, seed=seed)
    assert list(probes(run, some(2))) == [2, 2]
    most, counts = max(1, int(window * p_max)), []
    for start in range(2, 2 + 6 * window, window):
        batches = [PROBLEM.batch(start + t) for t in range(window)]
        counts.append(sum(asked == 2 for asked in probes(run, batches)))
        assert counts[-1] == int(run.engine.memory["s"])
        assert 1 <= counts[-1] <= most
    if most > 1:
        assert max(counts) > 1  # else the budget never moved and the test says little


@windows
def test_v5_the_reuse_fades_and_ends(kind):
    beta = 0.8
    run = Run(PROBLEM, PROBLEM.weights(1), kind(rho=0.4, window=24, beta=beta, warmup=1))
    assert list(probes(run, some(1))) == [2]
    age, ages = 0, set()
    for batch in some(48):
        g = PROBLEM.gradient(run.w, batch)
        if next(probes(run, [batch], [0.05])) == 2:
            age = 0
            continue
        age += 1
        ages.add(age)
        expected = beta**age if age <= 6 else 0.0
        assert_same([run.grad], [add(g, drive.arrays(run.engine.memory["psf"]), expected)], SAME)
    assert ages >= set(range(1, 9))


@windows
def test_windows_depend_on_the_seed_alone(kind):
    def pattern(seed):
        run = Run(PROBLEM, PROBLEM.weights(1), kind(window=10), seed=seed)
        return list(probes(run, some(40)))

    assert pattern(3) == pattern(3)
    assert pattern(3) != pattern(4)
