"""What VaSSO's moving average remembers, and when it is SAM.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import pytest
import torch
from problems import batch as batch_of
from problems import net
from reference import drive
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, Spare, path_of, some
from reference.drive import Run, assert_differ, assert_same, sgd
from reference.vectors import add, norm, scale, zeros

import lowland
from lowland import SAM, VaSSO
from lowland.core.errors import ArgumentError


@pytest.mark.parametrize("base", BASES)
def test_at_one_it_is_sam(base: str) -> None:
    path = path_of(VaSSO(rho=0.2, theta=1.0), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@pytest.mark.parametrize("base", BASES)
def test_the_first_step_is_a_sam_step(base: str) -> None:
    path = path_of(VaSSO(rho=0.2, theta=0.4), some(3), optimizer=BASES[base])
    expected = path_of(SAM(rho=0.2), some(3), optimizer=BASES[base])
    assert_same(path[:1], expected[:1], SAME)
    assert_differ(path[1:2], expected[1:2])


@pytest.mark.parametrize("theta", [0.2, 0.9])
def test_the_average_by_its_sum(theta: float) -> None:
    """``m_t = (1 - theta)^(t-1) g_1 + sum over k > 1 of theta (1 - theta)^(t-k) g_k``."""
    run, gradients = Run(PROBLEM, PROBLEM.weights(1), VaSSO(rho=0.3, theta=theta), MOMENTUM), []
    for t, (batch, lr) in enumerate(zip(some(), LRS, strict=True), 1):
        w = run.w
        gradients.append(PROBLEM.gradient(w, batch))
        mean = zeros(w)
        for k, g in enumerate(gradients, 1):
            mean = add(mean, g, (1 - theta) ** (t - k) * (1 if k == 1 else theta))
        expected = PROBLEM.gradient(add(w, scale(mean, 0.3 / norm(mean))), batch)
        run.step(batch, lr)
        assert_same([drive.arrays(run.engine.memory["mean"])], [mean], SAME)
        assert_same([run.grad], [expected], SAME)


def test_equal_batches_at_weights_that_stand_still_are_sam() -> None:
    batches, still = [PROBLEM.batch(0)] * 5, [0.0] * 5
    one = Run(PROBLEM, PROBLEM.weights(1), VaSSO(rho=0.3, theta=0.4), sgd())
    other = Run(PROBLEM, PROBLEM.weights(1), SAM(rho=0.3), sgd())
    for batch, lr in zip(batches, still, strict=True):
        one.step(batch, lr)
        other.step(batch, lr)
        assert_same([one.grad], [other.grad], SAME)


def test_a_parameter_without_gradient_keeps_its_average_and_is_not_perturbed() -> None:
    run = Run(Spare(), PROBLEM.weights(1), VaSSO(rho=0.3), MOMENTUM)
    spare = next(i for i, name in enumerate(run.engine.names) if name == "spare")
    run.engine.memory["mean"] = [
        torch.ones_like(p) if i == spare else t
        for i, (p, t) in enumerate(zip(run.engine.params, run.engine.memory["mean"], strict=True))
    ]
    moved: list[torch.Tensor] = []
    loss_fn = run.engine.work.loss_fn
    run.engine.work.loss_fn = lambda m, b: (moved.append(m.spare.detach().clone()), loss_fn(m, b))[1]
    run.step(some(1)[0], 0.1)
    assert torch.equal(run.engine.memory["mean"][spare], torch.ones(3, dtype=torch.float64))
    assert len(moved) == 2
    assert all(torch.equal(m, torch.ones(3, dtype=torch.float64)) for m in moved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_seen_and_not_kept(value: float) -> None:
    model = net()
    engine = lowland.Engine(VaSSO(), model, torch.optim.SGD(model.parameters(), lr=0.1), _each)
    engine.backward(batch_of(0))
    before = [t.clone() for t in engine.memory["mean"]]
    engine.loss_fn = engine.work.loss_fn = lambda m, b: _each(m, b) * value
    engine.backward(batch_of(1))
    assert not all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(engine.memory["mean"], before, strict=True))


def _each(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("theta", [0, -0.1, 1.1, True, "1/t"])
def test_other_weights_are_refused(theta: float) -> None:
    with pytest.raises(ArgumentError, match="theta must be"):
        VaSSO(theta=theta)
