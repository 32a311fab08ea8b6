"""Y1, and what else AsyncSAM's formula implies.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import batch as tensors
from problems import loss_fn, net, same, sgd, train
from reference import drive
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same, trajectory
from reference.model import flat
from reference.sampling import Watch, pick
from reference.vectors import add, norm

import lowland
from lowland import SAM, AsyncSAM, Plain
from lowland.core.errors import ArgumentError, UsageError


@pytest.mark.parametrize("base", BASES)
def test_y1_without_delay_on_the_whole_batch_it_is_sam(base):
    path = path_of(AsyncSAM(rho=0.2, share=1, tau=0), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("tau", [0, 1])
def test_without_radius_it_is_the_base_optimizer(base, tau):
    path = path_of(AsyncSAM(rho=0.0, tau=tau), some(), optimizer=BASES[base])
    assert_same(path, path_of(Plain(), some(), optimizer=BASES[base]), 1e-9 if base == "adamw" else SAME)


def test_the_first_step_is_the_base_optimizer_s():
    path, plain = path_of(AsyncSAM(rho=0.2), some()), path_of(Plain(), some())
    assert_same(path[:1], plain[:1], 0.0)
    assert_differ(path[1:2], plain[1:2])


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_displacement_is_the_gradient_of_the_step_before(share):
    run = Run(PROBLEM, PROBLEM.weights(1), AsyncSAM(rho=0.3, share=share), MOMENTUM)
    stale = None
    for batch, lr in zip(some(), LRS, strict=True):
        w = run.w
        e = [0 * x for x in w] if stale is None else [0.3 / norm(stale) * x for x in stale]
        run.step(batch, lr)
        assert_same([run.grad], [PROBLEM.gradient(add(w, e), batch)], SAME)
        stale = PROBLEM.gradient(w, pick(batch, np.arange(max(1, int(share * 12)))))


def test_where_the_gradient_is_constant_it_is_sgd():
    problem = flat()
    batches = some(10, problem)
    assert_same(path_of(AsyncSAM(rho=0.7), batches, problem=problem), path_of(Plain(), batches, problem=problem), SAME)


@pytest.mark.parametrize(
    ("share", "size", "count"), [(0.25, 12, 3), (0.25, 3, 1), (0.29, 100, 29), (1.0, 5, 5), (1, 1, 1)]
)
@pytest.mark.parametrize("tau", [0, 1])
def test_the_ascent_gradient_is_of_the_first_examples(share, size, count, tau):
    batch = PROBLEM.batch(0, size)
    watch = Watch(PROBLEM, batch)
    run = Run(PROBLEM, PROBLEM.weights(1), AsyncSAM(share=share, tau=tau), loss_fn=watch)
    loss = run.step(batch, 0.1)
    ascent, descent = watch.looks if tau == 0 else reversed(watch.looks)
    assert ascent.examples == list(range(count))
    assert descent.examples == list(range(size))
    assert_same([ascent.w], [PROBLEM.weights(1)], 0.0)
    assert loss == pytest.approx(PROBLEM.loss(descent.w, batch), rel=1e-12)
    assert (tau == 0) == any((x != y).any() for x, y in zip(ascent.w, descent.w, strict=True))


class Recorder(lowland.Local):
    """Answers as `Local` does and keeps how many probes were asked together."""

    def __init__(self):
        self.asked = []

    def run(self, work, probes):
        self.asked.append(len(probes))
        return super().run(work, probes)


@pytest.mark.parametrize(("tau", "asked", "sequential"), [(1, [2, 2, 2], 3.0), (0, [1, 1] * 3, 3.75)])
def test_both_gradients_are_asked_together(tau, asked, sequential):
    recorder, model = Recorder(), net()
    engine = lowland.Engine(AsyncSAM(tau=tau), model, sgd(model), loss_fn, executor=recorder)
    train(engine, 3)
    assert recorder.asked == asked
    assert (engine.cost.gradients, engine.cost.sequential) == pytest.approx((3.75, sequential))


@pytest.mark.parametrize("tau", [0, 1])
def test_batch_norm_sees_the_whole_batch_once(tau):
    # on the first step the whole batch is looked at without displacement, or at rho = 0
    model, plain = net(norm=True), net(norm=True)
    lowland.Engine(AsyncSAM(rho=0.0, tau=tau), model, sgd(model), loss_fn).backward(tensors())
    lowland.Engine(Plain(), plain, sgd(plain), loss_fn).backward(tensors())
    assert model.norm.num_batches_tracked.item() == 1
    assert same(list(model.norm.buffers()), list(plain.norm.buffers()))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", [1, 11])
def test_a_gradient_that_is_not_finite_displaces_nothing(value, where):
    run = Run(PROBLEM, PROBLEM.weights(1), AsyncSAM(rho=0.3), MOMENTUM)
    trajectory(run, some(3), LRS[:3])
    batch = PROBLEM.batch(50)
    batch[0][where] = value  # example 1 is in the ascent batch, 11 in the descent batch alone
    w = run.w
    run.engine.backward(drive.to_torch(batch))
    assert not all(np.isfinite(g).all() for g in run.grad)
    assert_same([run.w], [w], 0.0)
    stale = drive.arrays(run.engine.memory["stale"])
    assert all(np.isfinite(x).all() for x in stale)
    assert any(x.any() for x in stale) == (where == 11)
    # the caller skips that step and goes on
    batch = PROBLEM.batch(51)
    e = [0.3 / norm(stale) * x for x in stale] if where == 11 else [0 * x for x in w]
    run.step(batch, 0.1)
    assert_same([run.grad], [PROBLEM.gradient(add(w, e), batch)], SAME)


def test_a_zero_gradient_displaces_nothing():
    problem = flat()
    nothing = np.zeros((6, 4)), np.zeros(6)
    run = Run(problem, problem.weights(1), AsyncSAM(rho=0.3))
    trajectory(run, [nothing] * 3, LRS[:3])
    assert_same([run.w], [problem.weights(1)], 0.0)


def test_it_remembers_one_vector_with_delay_and_nothing_without():
    model = net()
    assert list(lowland.Engine(AsyncSAM(), model, sgd(model), loss_fn).memory) == ["stale"]
    assert lowland.Engine(AsyncSAM(tau=0), model, sgd(model), loss_fn).memory == {}


def test_a_closure_hides_the_batch_that_it_cuts():
    model = net()
    engine = lowland.Engine(AsyncSAM(), model, sgd(model), loss_fn)
    with pytest.raises(UsageError, match="AsyncSAM keeps, cuts or reads batches"):
        lowland.ClosureOptimizer(engine)
    with pytest.raises(UsageError, match="AsyncSAM keeps, cuts or reads batches"):
        next(engine.passes())


def test_passes_may_be_run_by_the_caller():
    model = net()
    engine = lowland.Engine(AsyncSAM(), model, sgd(model))
    for p in engine.passes(tensors()):
        with p:
            p.backward(loss_fn(model, p.batch))
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"share": 0}, "share must be > 0, but is 0; "),
        ({"share": 1.5}, r"share must be in \[0, 1\], but is 1.5"),
        ({"share": 8}, r"share must be in \[0, 1\], but is 8"),
        ({"tau": 2}, "tau must be one of 0, 1, but is 2"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        AsyncSAM(**fields)
