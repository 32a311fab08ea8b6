"""K1, K2, and what else K-SAM's formula implies.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import batch as tensors
from problems import loss_fn, net, same, sgd, train, weights
from reference.attacks import assert_leaves_alone_what_does_not_take_part
from reference.cases import BASES, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same, to_torch
from reference.model import concatenate
from reference.sampling import Watch, pick
from reference.vectors import add, norm

import lowland
from lowland import KSAM, SAM, Plain
from lowland.core.errors import ArgumentError, LossError


def watched(method, batch, **options):
    """What the passes of one step look at."""
    watch = Watch(PROBLEM, batch)
    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM, loss_fn=watch, **options)
    loss = run.step(batch, 0.1)
    return watch.looks, run, loss


@pytest.mark.parametrize("k", [1.0, 12, 100])
@pytest.mark.parametrize("base", BASES)
def test_k1_the_whole_batch_is_sam(k, base):
    path = path_of(KSAM(rho=0.2, k=k), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@pytest.mark.parametrize("k", [0.5, 1, 5])
def test_k2_identical_examples_are_sam_on_one(k):
    ones = [PROBLEM.batch(t, 1) for t in range(10)]
    path = path_of(KSAM(rho=0.2, k=k), [concatenate(*[one] * 6) for one in ones])
    assert_same(path, path_of(SAM(rho=0.2), ones), SAME)


def test_one_example_is_sam():
    ones = [PROBLEM.batch(t, 1) for t in range(10)]
    assert_same(path_of(KSAM(rho=0.2), ones), path_of(SAM(rho=0.2), ones), SAME)


@pytest.mark.parametrize(
    ("k", "size", "count"),
    [(0.5, 12, 6), (0.5, 7, 3), (0.1, 3, 1), (0.29, 100, 29), (0.7, 10, 7), (1.0, 9, 9), (4, 12, 4), (4, 3, 3)],
)
def test_both_gradients_are_of_the_k_largest_losses(k, size, count):
    batch = PROBLEM.batch(3, size)
    looks, run, loss = watched(KSAM(rho=0.3, k=k), batch)
    losses = PROBLEM.losses(PROBLEM.weights(1), batch)
    hardest = sorted(np.argsort(-losses)[:count])
    assert [look.grad for look in looks] == [False, True, True]
    assert [sorted(look.examples) for look in looks] == [list(range(size)), hardest, hardest]
    assert loss == pytest.approx(losses.mean(), rel=1e-12)  # the whole batch's
    assert norm(add(looks[2].w, looks[1].w, -1.0)) == pytest.approx(0.3, rel=1e-9)
    cost = run.engine.cost
    assert (cost.forwards, cost.gradients) == pytest.approx((1 + 2 * count / size, 2 * count / size))


def test_without_radius_it_is_the_base_on_the_hardest():
    run = Run(PROBLEM, PROBLEM.weights(1), KSAM(rho=0.0, k=3), MOMENTUM)
    for batch in some(6):
        hardest = pick(batch, np.argsort(-PROBLEM.losses(run.w, batch))[:3])
        expected = PROBLEM.gradient(run.w, hardest)
        run.step(batch, 0.1)
        assert_same([run.grad], [expected], SAME)
    assert_differ([run.w], path_of(Plain(), some(6))[-1:])


def test_batch_norm_sees_the_whole_batch_once():
    model, plain = net(norm=True), net(norm=True)
    lowland.Engine(KSAM(k=2), model, sgd(model), loss_fn).backward(tensors())
    lowland.Engine(Plain(), plain, sgd(plain), loss_fn).backward(tensors())
    assert model.norm.num_batches_tracked.item() == 1
    assert same(list(model.norm.buffers()), list(plain.norm.buffers()))


def test_in_evaluation_mode_statistics_rest():
    model = net(norm=True).eval()
    before = [b.clone() for b in model.norm.buffers()]
    train(lowland.Engine(KSAM(), model, sgd(model), loss_fn), 3)
    assert same(list(model.norm.buffers()), before)


def mean(model, batch):
    return loss_fn(model, batch).mean()


def test_a_mean_loss_is_refused_through_backward():
    model = net()
    engine = lowland.Engine(KSAM(), model, sgd(model), mean)
    before = weights(model)
    with pytest.raises(LossError, match=r'KSAM chooses examples by their losses.*reduction="none"'):
        engine.backward(tensors())
    assert same(weights(model), before)
    assert engine.step == 0
    assert all(p.grad is None for p in model.parameters())


def test_a_mean_loss_is_refused_through_passes():
    model = net()
    engine = lowland.Engine(KSAM(), model, sgd(model))
    with pytest.raises(LossError, match='reduction="none"'):  # noqa: PT012 - the pass ends, then the plan looks
        for p in engine.passes(tensors()):
            with p:
                p.backward(mean(model, p.batch))
    assert engine.step == 0


def test_passes_hand_out_the_hardest():
    model = net()
    engine, sizes = lowland.Engine(KSAM(k=3), model, sgd(model)), []
    for p in engine.passes(tensors(size=8)):
        with p:
            sizes.append([len(t) for t in p.batch])
            p.backward(loss_fn(model, p.batch))
    assert sizes == [[8, 8, 8], [3, 3, 3], [3, 3, 3]]


def test_a_nan_is_not_left_out():
    # The loss that is NaN counts as the largest: it must not vanish from a gradient that looks sound.
    batch = PROBLEM.batch(0)
    batch[0][4] = np.nan
    run = Run(PROBLEM, PROBLEM.weights(1), KSAM(k=2), MOMENTUM)
    before = run.w
    loss = run.engine.backward(to_torch(batch))
    assert torch.isnan(loss)
    assert all(np.isnan(g).all() for g in run.grad[2:])
    assert_same([run.w], [before], 0.0)


def test_unused_and_frozen_parameters_are_left_alone():
    assert_leaves_alone_what_does_not_take_part(KSAM(rho=0.2))


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (0, "k must be an integer >= 1, but is 0; a count of examples; write a fraction of the batch as 0.5"),
        (-2, "k must be an integer >= 1, but is -2"),
        (True, "k must be an integer >= 1, but is True"),
        ("half", "k must be an integer >= 1, but is 'half'"),
        (0.0, r"k must be > 0, but is 0.0"),
        (1.5, r"k must be in \[0, 1\], but is 1.5; a fraction of the batch; write a count as an integer"),
        (float("nan"), r"k must be in \[0, 1\], but is nan"),
    ],
)
def test_a_bad_k_is_refused(k, message):
    with pytest.raises(ArgumentError, match=message):
        KSAM(k=k)
