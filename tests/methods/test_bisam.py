"""B1, the surrogate, and where BiSAM finds logits and classes.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import bisam, drive
from reference.cases import BASES, MOMENTUM, PROBLEM, SAME, Spare, path_of, some
from reference.drive import Run, assert_differ, assert_same
from reference.model import to_torch
from reference.vectors import add, norm
from torch.nn.functional import cross_entropy

from lowland import SAM, BiSAM, Engine, Loss
from lowland.core.errors import ArgumentError, LossError, UsageError
from lowland.methods.bisam import surrogate_losses

KINDS = pytest.mark.parametrize(
    "fields", [{}, {"mu": 3.0, "alpha": 0.5}, {"phi": "log", "mu": 0.7}], ids=lambda f: f.get("phi", f"tanh {len(f)}")
)


@pytest.mark.parametrize("base", BASES)
def test_b1_with_the_training_loss_as_surrogate_it_is_sam(base):
    path = path_of(BiSAM(rho=0.2, surrogate=PROBLEM.loss_fn), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)
    assert_differ(path, path_of(BiSAM(rho=0.2), some(), optimizer=BASES[base]))


def test_b1_with_a_mean_as_surrogate():
    def mean(model, batch):
        return PROBLEM.loss_fn(model, batch).mean()

    path = path_of(BiSAM(rho=0.2, surrogate=mean), some())
    assert_same(path, path_of(SAM(rho=0.2), some()), SAME)


@KINDS
def test_the_surrogate_is_the_twin_s(fields):
    draw = np.random.default_rng(0)
    z, y = draw.normal(0.0, 4.0, (9, 5)), draw.integers(0, 5, 9)
    ours = surrogate_losses(torch.from_numpy(z), torch.from_numpy(y), **fields)
    twin = {"mu": 1.0, "alpha": 0.1, "phi": "tanh"} | fields
    np.testing.assert_allclose(ours, bisam.surrogate(z, y, twin["mu"], twin["phi"], twin["alpha"]), rtol=1e-13)


@KINDS
def test_the_surrogate_at_equal_logits_is_that_of_a_guess(fields):
    """phi(0) = 0: log(C) / mu, whatever the common value of the logits."""
    losses = surrogate_losses(torch.full((3, 4), 17.0, dtype=torch.float64), torch.tensor([0, 3, 1]), **fields)
    expected = torch.full((3,), np.log(4) / fields.get("mu", 1.0), dtype=torch.float64)
    torch.testing.assert_close(losses, expected, rtol=1e-13, atol=1e-13)


def test_the_surrogate_of_a_single_class_is_flat():
    logits = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = surrogate_losses(logits, torch.zeros(4, dtype=torch.long))
    losses.sum().backward()
    assert not losses.detach().any()
    assert not logits.grad.any()


@pytest.mark.parametrize("phi", ["tanh", "log"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_surrogate_survives_extreme_logits(dtype, phi):
    logits = torch.tensor([[6e4, -6e4], [-6e4, 6e4], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    losses = surrogate_losses(logits, torch.tensor([0, 0, 0]), mu=4.0, alpha=1.0, phi=phi)
    losses.sum().backward()
    assert losses.dtype is torch.float32
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()
    assert losses[0] < losses[2] < losses[1]  # right, undecided, wrong


@KINDS
def test_the_ascent_follows_the_surrogate_and_the_descent_the_loss(fields):
    rho, seen = 0.3, []
    run = Run(PROBLEM, PROBLEM.weights(1), BiSAM(rho=rho, **fields), MOMENTUM)

    def watching(model, batch):
        seen.append(drive.arrays(run.model.parameters()))
        return PROBLEM.loss_fn(model, batch)

    run.engine.loss_fn = run.engine.work.loss_fn = watching
    w, batch = run.w, PROBLEM.batch(0)
    loss = run.step(batch, 0.1)
    here, there = seen
    assert_same([here], [w], 0.0)
    twin = {"mu": 1.0, "alpha": 0.1, "phi": "tanh"} | fields
    slope = bisam.surrogate_slope(PROBLEM.logits(w, batch[0]), batch[1], twin["mu"], twin["phi"], twin["alpha"])
    q = PROBLEM.pull_back(w, batch[0], slope)
    assert_same([there], [add(w, q, rho / norm(q))], 1e-10)
    assert_same([run.grad], [PROBLEM.gradient(there, batch)], SAME)
    assert loss == pytest.approx(PROBLEM.loss(there, batch), rel=1e-12)  # that of the second pass


def first_steps(loss_fn, as_batch, method=None):
    """The weights after three steps on batches of another kind."""
    model = PROBLEM.module(PROBLEM.weights(1))
    optimizer = MOMENTUM(model.parameters())
    engine = Engine(BiSAM(rho=0.3) if method is None else method, model, optimizer, loss_fn)
    for batch in some(3):
        engine.backward(as_batch(*to_torch(batch)))
        optimizer.step()
        optimizer.zero_grad()
    return drive.arrays(model.parameters())


@pytest.mark.parametrize("key", ["targets", "labels"])
def test_classes_are_found_in_a_dict(key):
    def loss_fn(model, batch):
        return cross_entropy(model(batch["inputs"]), batch[key], reduction="none")

    found = first_steps(loss_fn, lambda x, y: {"inputs": x, key: y})
    assert_same([found], [first_steps(PROBLEM.loss_fn, lambda x, y: (x, y))], 0.0)


def test_classes_are_found_in_a_list_with_more_behind():
    found = first_steps(loss_of_the_first_two, lambda x, y: [x, y, torch.arange(len(y))])
    assert_same([found], [first_steps(PROBLEM.loss_fn, lambda x, y: (x, y))], 0.0)


def loss_of_the_first_two(model, batch):
    return PROBLEM.loss_fn(model, batch[:2])


def test_logits_may_come_with_a_name():
    class Named(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, inputs):
            return SimpleNamespace(logits=self.inner(inputs))

    def loss_fn(model, batch):
        return cross_entropy(model(inputs=batch[0]).logits, batch[1], reduction="none")

    inner = PROBLEM.module(PROBLEM.weights(1))
    model = Named(inner)
    engine = Engine(BiSAM(rho=0.3), model, MOMENTUM(model.parameters()), loss_fn)
    engine.backward(to_torch(PROBLEM.batch(0)))
    run = Run(PROBLEM, PROBLEM.weights(1), BiSAM(rho=0.3), MOMENTUM)
    run.step(PROBLEM.batch(0), 0.1)
    assert_same([[p.grad.numpy() for p in inner.parameters()]], [run.grad], 0.0)


def test_a_loss_may_look_at_the_model():
    def loss_fn(model, batch):
        penalty = sum(p.square().sum() for p in model.parameters())
        assert model.training
        return PROBLEM.loss_fn(model, batch) + 1e-3 * penalty

    assert all(np.isfinite(x).all() for x in first_steps(loss_fn, lambda x, y: (x, y)))


REFUSED = {
    "called twice": (
        lambda m, b: cross_entropy(m(b[0]) + m(b[0]), b[1], reduction="none"),
        lambda x, y: (x, y),
        r"must call the model it is given once .* called it 2 times; pass BiSAM\(surrogate=…\)",
    ),
    "called around it": (
        lambda m, b: cross_entropy(m.forward(b[0]), b[1], reduction="none"),
        lambda x, y: (x, y),
        "but it called it 0 times",
    ),
    "no classes": (lambda m, b: m(b).square().mean(1), lambda x, y: x, r'true classes as batch\[1\] or batch\["targ'),
    "no classes beside inputs": (lambda m, b: m(b[0]).square().mean(1), lambda x, y: (x,), "finds none"),
    "none under that name": (
        lambda m, b: cross_entropy(m(b["x"]), b["y"], reduction="none"),
        lambda x, y: {"x": x, "y": y},
        r'batch\["targets"\]',
    ),
    "real targets": (
        lambda m, b: (m(b[0]).mean(1) - b[1]).square(),
        lambda x, y: (x, y.double()),
        r"integer classes \(B,\), but has logits of shape .* and targets torch.float64",
    ),
    "shares of classes": (
        lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none"),
        lambda x, y: (x, torch.nn.functional.one_hot(y, 3).double()),
        r"integer classes .*of shape \(\d+, 3\)",
    ),
    "a sequence": (
        lambda m, b: cross_entropy(m(b[0])[:, :, None], b[1], reduction="none")[:, 0],
        lambda x, y: (x, y[:, None]),
        "integer classes",
    ),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_has_no_logits_and_classes_is_refused(key):
    loss_fn, as_batch, message = REFUSED[key]
    with pytest.raises(LossError, match=message):
        first_steps(loss_fn, as_batch)
    # and the way out that the message names
    assert all(np.isfinite(x).all() for x in first_steps(loss_fn, as_batch, BiSAM(rho=0.3, surrogate=loss_fn)))


def test_it_needs_a_loss_function():
    model = PROBLEM.module(PROBLEM.weights(1))
    engine = Engine(BiSAM(), model, MOMENTUM(model.parameters()))
    with pytest.raises(UsageError, match=r"loss_fn is None; make the Engine with loss_fn=… and call engine.backward"):
        engine.backward(to_torch(PROBLEM.batch(0)))


def test_passes_and_closures_are_refused():
    run = Run(PROBLEM, PROBLEM.weights(1), BiSAM(), MOMENTUM)
    with pytest.raises(UsageError, match="a closure hides"):
        next(run.engine.passes())
    with pytest.raises(UsageError, match=r"asks for another loss; call engine\.backward\(batch\)"):
        next(run.engine.passes(to_torch(PROBLEM.batch(0))))
    assert run.engine.cost.gradients == 0  # what was refused has cost nothing
    run.step(PROBLEM.batch(0), 0.1)
    assert run.engine.step == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mu": 0}, "mu must be > 0, but is 0; the paper takes mu=1 and alpha=0.1"),
        ({"mu": -1.0}, "mu must be a number >"),
        ({"alpha": 0.0}, "alpha must be > 0"),
        ({"phi": "relu"}, "phi must be one of 'tanh', 'log', but is 'relu'"),
        ({"mu": 2.0, "surrogate": PROBLEM.loss_fn}, "mu, alpha and phi must be left alone where surrogate is given"),
        ({"phi": "log", "surrogate": PROBLEM.loss_fn}, "mu, alpha and phi must be left alone"),
        ({"alpha": 0.2, "surrogate": PROBLEM.loss_fn}, "mu, alpha and phi must be left alone"),
        ({"surrogate": "cross entropy"}, "surrogate must be"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        BiSAM(**fields)


def test_confident_or_single_examples_are_no_nan():
    path = path_of(BiSAM(rho=0.2, mu=5.0, alpha=5.0), [PROBLEM.batch(t, 1) for t in range(5)])
    assert all(np.isfinite(x).all() for w in path for x in w)
    sure = [30.0 * x for x in PROBLEM.weights(1)]  # tanh(alpha z) is flat to the last bit: no direction
    run = Run(PROBLEM, sure, BiSAM(rho=0.2, alpha=50.0), MOMENTUM)
    run.step(PROBLEM.batch(0), 0.1)
    assert all(np.isfinite(x).all() for x in [*run.w, *run.grad])


def test_unused_parameters_stay():
    run = Run(Spare(), PROBLEM.weights(1), BiSAM(rho=0.2), MOMENTUM)
    for batch in some(3):
        run.step(batch, 0.1)
    assert run.model.spare.grad is None


def test_aux_of_the_training_loss_is_that_of_the_pass_that_reports():
    torch.manual_seed(0)
    net, x, y = torch.nn.Linear(3, 2).double(), torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])

    def loss(model, batch):
        logits = model(batch[0])
        return Loss(torch.nn.functional.cross_entropy(logits, batch[1], reduction="sum"), len(batch[1]), aux=logits)

    def plain(model, batch):
        return loss(model, batch).total / 4

    found = []
    for chosen in (loss, plain):
        engine = Engine(BiSAM(rho=0.2), net, torch.optim.SGD(net.parameters(), lr=0.1), chosen)
        net.zero_grad()
        engine.backward((x, y))
        found.append([p.grad.clone() for p in net.parameters()])
        if chosen is loss:
            assert torch.equal(engine.aux, net(x).detach())
    assert_same([[g.numpy() for g in found[0]]], [[g.numpy() for g in found[1]]], 1e-13)
