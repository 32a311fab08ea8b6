"""E1, E2, and what else ESAM's formula implies, with both masks.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import TripError, Wire, loss_fn, net, same, sgd, train
from problems import batch as tensors
from reference import drive
from reference.cases import BASES, MOMENTUM, PROBLEM, SAME, Spare, path_of, some
from reference.drive import Run, assert_same
from reference.sampling import Watch, pick
from reference.vectors import add, norm, scale

import lowland
from lowland import ESAM, SAM
from lowland.core.errors import ArgumentError, LossError

both = pytest.mark.parametrize("mask", ["tensor", "element"])


def watched(method, batch, seed=0):
    """What the passes of one step look at, and the displacement of the last one."""
    watch = Watch(PROBLEM, batch)
    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM, loss_fn=watch, seed=seed)
    run.step(batch, 0.1)
    return watch.looks, add(watch.looks[-1].w, PROBLEM.weights(1), -1.0), run


@both
@pytest.mark.parametrize("base", BASES)
def test_e1_with_nothing_left_out_it_is_sam(mask, base):
    path = path_of(ESAM(rho=0.2, beta=1.0, gamma=1.0, mask=mask), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@both
@pytest.mark.parametrize(
    ("gamma", "size", "count"), [(0.5, 12, 6), (0.5, 7, 3), (0.1, 3, 1), (0.29, 100, 29), (0.9, 1, 1)]
)
def test_e2_it_descends_on_the_share_gamma_whose_losses_rose_most(mask, gamma, size, count):
    batch = PROBLEM.batch(3, size)
    looks, e, run = watched(ESAM(rho=0.3, gamma=gamma, mask=mask), batch)
    w = PROBLEM.weights(1)
    rise = PROBLEM.losses(add(w, e), batch) - PROBLEM.losses(w, batch)
    assert [look.grad for look in looks] == [True, False, True]
    assert [len(look.examples) for look in looks] == [size, size, count]
    assert sorted(looks[2].examples) == sorted(np.argsort(-rise)[:count])
    assert_same([looks[1].w], [looks[2].w], 0.0)  # judged where it is descended
    assert_same([run.grad], [PROBLEM.gradient(add(w, e), pick(batch, np.array(looks[2].examples)))], SAME)
    cost = run.engine.cost
    assert (cost.gradients, cost.forwards) == pytest.approx((1 + count / size, 2 + count / size))


@pytest.mark.parametrize("seed", range(6))
def test_kept_tensors_share_the_radius(seed):
    batch, w = PROBLEM.batch(0), PROBLEM.weights(1)
    _, e, run = watched(ESAM(rho=0.3, beta=0.5), batch, seed)
    g = PROBLEM.gradient(w, batch)
    kept = [bool(x.any()) for x in e]
    length = norm([x for x, k in zip(g, kept, strict=True) if k])
    expected = [0.3 / 0.5 / length * x if k else 0 * x for x, k in zip(g, kept, strict=True)]
    assert_same([e], [expected], SAME)
    assert norm(e) == pytest.approx(0.6, rel=1e-9)
    # only the kept ones were differentiated in the first pass
    assert run.engine.cost.weights == pytest.approx(sum(kept) / 4 + 0.5)


def test_some_tensor_is_always_kept():
    counts = [sum(bool(x.any()) for x in watched(ESAM(beta=0.01), PROBLEM.batch(0), seed)[1]) for seed in range(20)]
    assert set(counts) == {1}


@pytest.mark.parametrize("seed", range(3))
def test_elements_are_kept_with_their_share_of_the_whole_gradient(seed):
    batch, w = PROBLEM.batch(0), PROBLEM.weights(1)
    _, e, run = watched(ESAM(rho=0.3, beta=0.4, mask="element"), batch, seed)
    g = PROBLEM.gradient(w, batch)
    full = scale(g, 0.3 / 0.4 / norm(g))
    assert_same([e], [[f * (x != 0) for f, x in zip(full, e, strict=True)]], SAME)
    kept = sum(np.count_nonzero(x) for x in e)
    assert 10 <= kept <= 40  # of 66 weights, 26 expected
    assert run.engine.cost.weights == pytest.approx(1.5)


@pytest.mark.slow
@both
@pytest.mark.parametrize("beta", [0.4, 0.8])
def test_tensors_and_elements_are_kept_as_often_as_beta_says(mask, beta):
    shares = [
        [np.mean(x != 0) for x in watched(ESAM(beta=beta, mask=mask), PROBLEM.batch(0), s)[1]] for s in range(150)
    ]
    # a draw without any tensor is drawn anew
    expected = beta / (1 - (1 - beta) ** 4) if mask == "tensor" else beta
    np.testing.assert_allclose(np.mean(shares, axis=0), expected, atol=0.13)  # about three standard deviations


@both
def test_masks_change_from_step_to_step_and_follow_the_seed(mask):
    def patterns(seed):
        run, found = Run(PROBLEM, PROBLEM.weights(1), ESAM(rho=0.2, mask=mask), seed=seed), []
        for batch in some(6):
            watch = Watch(PROBLEM, batch)
            run.engine.work.loss_fn = watch
            w = run.w
            run.step(batch, 0.1)
            found.append(tuple(tuple((x != 0).ravel()) for x in add(watch.looks[-1].w, w, -1.0)))
        return found

    assert len(set(patterns(0))) > 2
    assert patterns(0) == patterns(0)
    assert patterns(0) != patterns(1)


@pytest.mark.parametrize("gamma", [1, 1.0])
def test_all_examples_need_no_forward_pass(gamma):
    looks, _, run = watched(ESAM(gamma=gamma), PROBLEM.batch(0))
    assert [look.grad for look in looks] == [True, True]
    assert run.engine.cost.forwards == 2.0


def mean(model, batch):
    return loss_fn(model, batch).mean()


@both
def test_a_mean_loss_is_refused_through_backward_and_passes(mask):
    model = net()
    engine = lowland.Engine(ESAM(mask=mask), model, sgd(model), mean)
    with pytest.raises(LossError, match=r'ESAM chooses examples by their losses.*reduction="none"'):
        engine.backward(tensors())
    with pytest.raises(LossError, match='reduction="none"'):  # noqa: PT012 - the pass ends, then the plan looks
        for p in engine.passes(tensors()):
            with p:
                p.backward(mean(model, p.batch))
    assert engine.step == 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@both
def test_with_all_examples_a_mean_loss_will_do(mask):
    def trained(loss):
        model = net()
        train(lowland.Engine(ESAM(gamma=1, mask=mask), model, sgd(model), loss), 5)
        return [p.detach() for p in model.parameters()]

    for a, b in zip(trained(mean), trained(loss_fn), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@both
def test_batch_norm_sees_the_unperturbed_batch_once(mask):
    model, plain = net(norm=True), net(norm=True)
    lowland.Engine(ESAM(mask=mask), model, sgd(model), loss_fn).backward(tensors())
    lowland.Engine(lowland.Plain(), plain, sgd(plain), loss_fn).backward(tensors())
    assert model.norm.num_batches_tracked.item() == 1
    assert same(list(model.norm.buffers()), list(plain.norm.buffers()))


@pytest.mark.parametrize("rhos", [[0.0] * 4, [0.0, 0.0, 0.3, 0.0]])
def test_groups_without_radius(rhos):
    def groups(model):
        return [{"params": [p], "rho": rho} for p, rho in zip(model.parameters(), rhos, strict=True)]

    run = Run(PROBLEM, PROBLEM.weights(1), ESAM(rho=0.3, beta=0.4), MOMENTUM, groups=groups)
    for batch in some(8):
        watch = Watch(PROBLEM, batch)
        run.engine.work.loss_fn = watch
        w = run.w
        run.step(batch, 0.1)
        e = add(watch.looks[-1].w, w, -1.0)
        assert all(not x.any() for x, rho in zip(e, rhos, strict=True) if rho == 0)
        assert len(set(watch.looks[-1].examples)) == 6  # where nothing is perturbed, any half of them


def test_a_draw_of_unused_tensors_alone_perturbs_nothing():
    # Four tensors that are used, one that is not: with a small beta it is often the only one.
    run = Run(Spare(), PROBLEM.weights(1), ESAM(rho=0.3, beta=0.05), MOMENTUM)
    still = 0
    for t in range(30):
        batch = PROBLEM.batch(t)
        watch = Watch(PROBLEM, batch)
        run.engine.work.loss_fn = watch
        w = run.w
        run.step(batch, 0.02)
        moved = add(watch.looks[-1].w, w, -1.0)
        still += not any(x.any() for x in moved)
        assert all(p.grad is not None for p in run.model[0].parameters())  # the second pass is for all of them
    assert 2 <= still <= 15
    assert run.model.spare.grad is None
    assert torch.equal(run.model.spare, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_exception_in_any_pass_thaws_all_parameters(nth):
    def trip(loss):
        raise TripError

    model = net()
    engine = lowland.Engine(ESAM(beta=0.3), model, sgd(model), Wire(nth, trip))
    with pytest.raises(TripError):
        engine.backward(tensors())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@both
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_example_s_nan_is_not_hidden(mask, value):
    # Its loss does not rise, so it would be easy to leave out; but the ascent gradient has seen it.
    batch = PROBLEM.batch(0)
    batch[0][4] = value
    run = Run(PROBLEM, PROBLEM.weights(1), ESAM(rho=0.1, beta=1.0, mask=mask), MOMENTUM)
    before = run.w
    assert torch.isnan(run.engine.backward(drive.to_torch(batch)))
    assert not all(np.isfinite(g).all() for g in run.grad)
    assert_same([run.w], [before], 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0}, "beta must be > 0, but is 0; it is the fraction that is kept"),
        ({"beta": 1.1}, r"beta must be in \[0, 1\], but is 1.1; 1 keeps all"),
        ({"gamma": 0.0}, "gamma must be > 0"),
        ({"gamma": -0.5}, r"gamma must be in \[0, 1\], but is -0.5"),
        ({"gamma": True}, r"gamma must be in \[0, 1\], but is True"),
        ({"mask": "layer"}, "mask must be one of 'tensor', 'element', but is 'layer'"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        ESAM(**fields)
