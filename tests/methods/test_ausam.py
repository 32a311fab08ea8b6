"""U1, U2, K2, and what else AUSAM's formula implies; its draws are counted in `test_ausam_draws.py`.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from problems import EXAMPLES, loss_fn, net, same, sgd, train, weights
from problems import batch as tensors
from reference import drive
from reference.cases import BASES, LRS, MOMENTUM, SAME
from reference.drive import Run, assert_same, trajectory
from reference.model import MLP
from reference.sampling import Indexed, Watch, pick
from reference.vectors import add, norm

import lowland
from lowland import AUSAM, SAM
from lowland.core.errors import ArgumentError, BatchError, LossError, StateError, UsageError

PROBLEM = Indexed(examples=20)
N = PROBLEM.examples


def ausam(**fields):
    return AUSAM(rho=0.2, examples=N, **fields)


def run_of(method, optimizer=MOMENTUM, problem=PROBLEM, **options):
    return Run(problem, PROBLEM.weights(1), method, optimizer, **options)


def some(steps=10):
    return [PROBLEM.batch(t) for t in range(steps)]


def tables(run):
    return run.engine.memory["sums"].numpy().copy(), run.engine.memory["counts"].numpy().copy()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("fields", [{"alpha": 1}, {"warmup": 10}], ids=["alpha", "warmup"])
def test_u1_on_the_whole_batch_it_is_sam(base, fields):
    paths = [trajectory(run_of(m, BASES[base]), some(), LRS) for m in (ausam(**fields), SAM(rho=0.2))]
    assert_same(*paths, SAME)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_k2_identical_examples_are_sam_on_one(alpha):
    ones = [PROBLEM.batch(t, 1) for t in range(10)]
    sixes = [pick(one, np.zeros(6, dtype=int)) for one in ones]
    path = trajectory(run_of(ausam(alpha=alpha)), sixes, LRS)
    assert_same(path, trajectory(run_of(SAM(rho=0.2)), ones, LRS), SAME)


@pytest.mark.parametrize(
    ("alpha", "size", "count"), [(0.5, 12, 6), (0.5, 7, 3), (0.1, 5, 1), (0.29, 12, 3), (0.5, 1, 1)]
)
def test_u2_counts_grow_by_the_drawn_share(alpha, size, count):
    run, seen = run_of(ausam(alpha=alpha, warmup=2)), 0.0
    for t in range(8):
        watch = Watch(PROBLEM, PROBLEM.batch(t, size))
        run.engine.work.loss_fn = watch
        run.step(watch.batch, 0.1)
        first, second = watch.looks
        assert first.examples == second.examples
        assert len(set(first.examples)) == (size if t < 2 else count)  # none twice
        if len(first.examples) == size:
            assert first.examples == list(range(size))  # the whole batch stays in order
        seen += len(first.examples)
        assert tables(run)[1].sum() == seen
    assert run.engine.cost.gradients == pytest.approx(4 + 6 * 2 * count / size)


def test_scores_are_kept_by_position_in_the_training_set():
    run, sums, counts = run_of(ausam(alpha=0.5, warmup=1)), np.zeros(N), np.zeros(N)
    for batch in some(6):
        watch = Watch(PROBLEM, batch)
        run.engine.work.loss_fn = watch
        w = run.w
        loss = run.step(batch, 0.1)
        drawn = pick(batch, np.array(watch.looks[0].examples))
        g = PROBLEM.gradient(w, drawn)
        e = [0.2 / norm(g) * x for x in g]
        before, after = PROBLEM.losses(w, drawn), PROBLEM.losses(add(w, e), drawn)
        sums[drawn[2]] += np.abs(after - before)
        counts[drawn[2]] += 1
        np.testing.assert_allclose(tables(run)[0], sums, rtol=1e-9)
        np.testing.assert_array_equal(tables(run)[1], counts)
        assert loss == pytest.approx(before.mean(), rel=1e-12)
        assert_same([run.grad], [PROBLEM.gradient(add(w, e), drawn)], SAME)


def test_an_example_twice_in_a_batch_is_scored_twice():
    run = run_of(ausam(warmup=1))
    batch = pick(PROBLEM.batch(0), np.array([0, 1, 1, 2]))
    run.step(batch, 0.1)
    np.testing.assert_array_equal(tables(run)[1][batch[2]], [1, 2, 2, 1])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_any_integers_are_positions(dtype):
    def trained(kind):
        model = net()
        engine = lowland.Engine(AUSAM(examples=8), model, sgd(model), loss_fn)
        for t in range(4):
            inputs, targets, _ = tensors(t)
            # as many examples as the table has rows: a mask would fit, too
            engine.backward((inputs, targets, torch.randperm(8, generator=torch.Generator().manual_seed(t)).to(kind)))
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        return [*weights(model), engine.memory["sums"], engine.memory["counts"]]

    assert same(trained(dtype), trained(torch.int64))


def test_a_batch_may_be_a_dict():
    def in_dict(model, b):
        return loss_fn(model, (b["x"], b["y"]))

    one, other = net(), net()
    plain = lowland.Engine(AUSAM(examples=EXAMPLES), one, sgd(one), loss_fn)
    keyed = lowland.Engine(AUSAM(examples=EXAMPLES), other, sgd(other), in_dict)
    for t in range(5):
        inputs, targets, index = tensors(t)
        plain.backward((inputs, targets, index))
        keyed.backward({"index": index, "x": inputs, "y": targets})
        for engine in (plain, keyed):
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        assert same(weights(one), weights(other))
    assert torch.equal(plain.memory["sums"], keyed.memory["sums"])


def test_a_resumed_run_draws_and_scores_on_bit_by_bit():
    def fresh():
        return run_of(ausam(alpha=0.3, ramp=8, warmup=2), seed=5)

    whole = fresh()
    trajectory(whole, some(6), LRS[:6])
    file = io.BytesIO()
    parts = {"model": whole.model, "optimizer": whole.optimizer, "engine": whole.engine}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    trajectory(whole, some()[6:], LRS[6:])
    file.seek(0)
    saved, resumed = torch.load(file, weights_only=True), fresh()
    for name in parts:
        getattr(resumed, name).load_state_dict(saved[name])
    trajectory(resumed, some()[6:], LRS[6:])
    assert_same([resumed.w, list(tables(resumed))], [whole.w, list(tables(whole))], 0.0)
    assert resumed.engine.rng.getstate() == whole.engine.rng.getstate()
    assert resumed.engine.memory["t"] == 10


def test_a_state_with_another_table_is_refused():
    # as many steps, another training set: its rows mean other examples
    def fresh(examples):
        model = net()
        return lowland.Engine(AUSAM(examples=examples), model, sgd(model), loss_fn)

    state = fresh(30).state_dict()
    with pytest.raises(StateError, match=r"sums|examples"):
        fresh(EXAMPLES).load_state_dict(state)


# What is refused, and that nothing has changed then

INPUTS, TARGETS, INDEX = tensors()
BATCHES = {
    "no positions": ((INPUTS, TARGETS), r"AUSAM keeps a score.*\(inputs, targets, index\).*None.*__getitem__"),
    "float positions": ((INPUTS, TARGETS, INDEX.double()), "integers of shape.*a torch.float64 tensor of shape"),
    "a mask": ((INPUTS, TARGETS, INDEX > 3), "integers of shape.*a torch.bool tensor"),
    "one column": ((INPUTS, TARGETS, INDEX[:, None]), r"integers of shape.*shape \(8, 1\)"),
    "too large": ((INPUTS, TARGETS, INDEX + EXAMPLES - 7), rf"must be in 0..{EXAMPLES - 1}, because examples = 20"),
    "negative": ((INPUTS, TARGETS, INDEX - 1), r"must be in 0..19.*AUSAM\(examples=…\)"),
    "too few": ((INPUTS, TARGETS, INDEX[:5]), r"share dimension 0.*batch\[2\] has 5"),
    "no key": ({"x": INPUTS, "y": TARGETS}, 'under the key "index"'),
}


@pytest.mark.parametrize(("bad", "message"), BATCHES.values(), ids=BATCHES)
def test_batches_without_positions_are_refused(bad, message):
    model = net()
    engine = lowland.Engine(AUSAM(examples=EXAMPLES), model, sgd(model), loss_fn)
    train(engine, 2)
    before, memory, random = weights(model), dict(engine.memory), engine.rng.getstate()
    with pytest.raises(BatchError, match=message):
        engine.backward(bad)
    assert same(weights(model), before)
    assert engine.memory == memory  # the very tables: they are replaced, never written to
    assert (engine.step, engine.rng.getstate()) == (2, random)
    train(engine, 1, start=2)


def test_tables_are_replaced_not_written_to():
    model = net()
    engine = lowland.Engine(AUSAM(examples=EXAMPLES), model, sgd(model), loss_fn)
    train(engine, 1)
    kept = {key: engine.memory[key] for key in ("sums", "counts")}
    copies = {key: value.clone() for key, value in kept.items()}
    train(engine, 1, start=1)
    assert all(torch.equal(kept[key], copies[key]) for key in kept)
    assert all(engine.memory[key] is not kept[key] for key in kept)


def mean(model, batch):
    return loss_fn(model, batch).mean()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_mean_loss_is_refused_through_backward_and_passes(alpha):
    model = net()
    engine = lowland.Engine(AUSAM(examples=EXAMPLES, alpha=alpha), model, sgd(model), mean)
    with pytest.raises(LossError, match=r'(AUSAM chooses|a mean, shape .*for a part).*reduction="none"'):
        engine.backward(tensors())
    with pytest.raises(LossError, match='reduction="none"'):  # noqa: PT012 - the pass ends, then the plan looks
        for p in engine.passes(tensors()):
            with p:
                p.backward(mean(model, p.batch))
    assert (engine.step, engine.memory["t"]) == (0, 0)
    assert not engine.memory["counts"].any()


def test_passes_without_a_batch_are_refused():
    model = net()
    engine = lowland.Engine(AUSAM(examples=EXAMPLES), model, sgd(model))
    with pytest.raises(UsageError, match="AUSAM keeps, cuts or reads batches"):
        next(engine.passes())


def test_examples_must_be_given_before_training():
    with pytest.raises(ArgumentError, match=r"examples must be given.*AUSAM\(examples=len\(dataset\)\)"):
        Run(MLP(), MLP().weights(1), AUSAM())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 0}, "alpha must be > 0, but is 0"),
        ({"alpha": 2}, r"alpha must be in \[0, 1\], but is 2"),
        ({"fmin": 0.0}, "fmin must be > 0, but is 0"),
        ({"fmin": 0.6}, "fmax must be a number >= 0.6, but is 0.5"),
        ({"fmax": 0.05}, "fmax must be a number >= 0.1, but is 0.05"),
        ({"ramp": 1.5}, "ramp must be an integer >= 0, in steps, or .*, but is 1.5"),
        ({"warmup": -1}, "warmup must be an integer >= 0, in steps, or .*, but is -1"),
        ({"examples": 0}, "examples must be an integer >= 1, but is 0"),
        ({"examples": 2.0}, "examples must be an integer >= 1, but is 2.0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        AUSAM(**fields)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_not_scored(value):
    run = run_of(ausam(warmup=20))
    trajectory(run, some(2), LRS[:2])
    before, batch = tables(run), PROBLEM.batch(9)
    batch[0][4] = value
    run.engine.backward(drive.to_torch(batch))
    # the gradient is NaN, so all perturbed losses are: nothing is learned from this step
    assert_same([list(tables(run))], [list(before)], 0.0)
    assert not all(np.isfinite(g).all() for g in run.grad)
