"""LE-SAM against its twin, in its limits, and by hand."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from problems import batch, in_parts, net, same, sgd, train, weights
from reference import drive, geometry, le_sam
from reference.cases import path_of, some
from reference.follow import BASES, assert_follows, in_groups

from lowland import LESAM, SAM, Adaptive, Engine, Layerwise, Plain, Probe, schedule, vec
from lowland.core.errors import ArgumentError

FIELDS = {"rho": 0.4, "sigma": 0.1}  # short of rho in some steps and not in others
TWIN = le_sam.LESAM


@pytest.mark.parametrize("base_key", BASES)
def test_follows_its_twin(base_key: str) -> None:
    assert_follows(LESAM(**FIELDS), TWIN, FIELDS, base_key)


@pytest.mark.parametrize(
    ("ball", "twin"), [(Adaptive(), geometry.adaptive()), (Layerwise(), geometry.layerwise)], ids=["adaptive", "layers"]
)
def test_follows_its_twin_in_other_balls(ball: Any, twin: Any) -> None:
    assert_follows(LESAM(**FIELDS, geometry=ball), TWIN, FIELDS | {"geometry": twin}, "momentum")


def test_groups_with_their_own_rho_share_one_budget() -> None:
    rhos = [0.4, 0.0, 0.2, 0.8]
    assert_follows(LESAM(**FIELDS), TWIN, FIELDS | {"rho": rhos}, "momentum", groups=in_groups(rhos))


def test_a_budget_may_change_from_step_to_step() -> None:
    sigma = schedule.linear(0.0, 0.3, steps=8)
    fields = {"rho": 0.4, "sigma": lambda t: sigma.at(t, 0.1)}
    assert_follows(LESAM(rho=0.4, sigma=sigma), TWIN, fields, "momentum")
    by_progress = LESAM(rho=0.4, sigma=schedule.linear(0.0, 0.3))
    assert by_progress.needs_progress
    twin = {"rho": 0.4, "sigma": lambda t: 0.3 * t / 12}
    assert_follows(by_progress, TWIN, twin, "momentum", total_steps=12)


class Watched(LESAM):
    """Notes the displacement and its linearized rise."""

    seen: ClassVar[list[tuple[float, float]]] = []

    def plan(self, engine: Any, batch: Any) -> Any:
        plan, answer, grad = super().plan(engine, batch), None, None
        while True:
            try:
                probe: Probe = plan.send(answer)
            except StopIteration as done:
                return done.value
            if probe.at is not None:
                at = list(probe.at)  # type: ignore[arg-type]
                self.seen.append((float(vec.norm(at)), float(vec.dot(grad, at))))
            answer = yield probe
            grad = vec.clone(answer.grad)


def test_the_linearized_loss_rises_by_the_budget_or_the_radius_is_the_largest() -> None:
    Watched.seen.clear()
    model = net()
    train(Engine(Watched(rho=0.1, sigma=0.05), model, sgd(model), in_parts), 30)
    lengths, rises = zip(*Watched.seen, strict=True)
    short = [rise for length, rise in Watched.seen if length < 0.1 - 1e-9]
    assert 0 < len(short) < 30  # both cases occur
    assert short == pytest.approx([0.05] * len(short), rel=1e-9)
    assert max(lengths) <= 0.1 + 1e-12
    assert max(rises) <= 0.05 + 1e-12


def test_with_a_large_budget_it_is_sam_and_with_none_the_base_optimizer() -> None:
    batches = some(8)
    drive.assert_same(path_of(LESAM(rho=0.3, sigma=1e6), batches), path_of(SAM(rho=0.3), batches))
    drive.assert_same(path_of(LESAM(rho=0.3, sigma=0), batches), path_of(Plain(), batches))
    drive.assert_differ(path_of(LESAM(rho=0.3, sigma=0.05), batches), path_of(SAM(rho=0.3), batches))


def test_a_loss_and_a_budget_that_are_scaled_alike_give_the_same_perturbation() -> None:
    def run(scale: float) -> list[torch.Tensor]:
        model = net()
        loss = lambda m, b: scale * in_parts(m, b)  # noqa: E731
        Engine(LESAM(rho=1e6, sigma=0.1 * scale), model, sgd(model), loss).backward(batch())
        return [p.grad / scale for p in model.parameters()]

    for a, b in zip(run(1.0), run(64.0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_by_hand() -> None:
    # L = w^2 at w = 3: g = 6. sigma = 1.2 is reached at w + 0.2, where the gradient is 6.4; rho = 0.1 stops before.
    for rho, expected in ((5.0, 6.4), (0.1, 6.2)):
        model = torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.constant_(model.weight, 3.0)
        Engine(
            LESAM(rho=rho, sigma=1.2), model, sgd(model), lambda m, b: m.weight.square().sum() + 0 * b.sum()
        ).backward(torch.ones(1, dtype=torch.float64))
        assert model.weight.grad.item() == pytest.approx(expected, rel=1e-11)


def test_a_large_radius_does_not_overflow_in_float32() -> None:
    model = net(dtype=torch.float32)
    engine = Engine(LESAM(rho=999.0, sigma=0.1), model, sgd(model), in_parts)
    engine.backward(batch(dtype=torch.float32))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_schedule_that_is_constant_is_a_number() -> None:
    one, other = net(), net()
    train(Engine(LESAM(sigma=0.1), one, sgd(one), in_parts), 4)
    train(Engine(LESAM(sigma=schedule.constant(0.1)), other, sgd(other), in_parts), 4)
    assert same(weights(one), weights(other))


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), "0.1", True, None])
def test_a_budget_that_is_none_is_refused(sigma: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"sigma must be a number >= 0, but is .*; sigma=0 leaves the plain gradient"
    ):
        LESAM(sigma=sigma)
