"""The circle on which XSAM's direction lies, and what its search chooses.

Float64 where nothing else is said. What is equal in exact arithmetic agrees here to `SAME`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from problems import batch, loss_fn, net, sgd, train, weights
from ranks import on_ranks
from reference import drive
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same
from reference.follow import in_groups
from reference.model import Quadratic
from reference.vectors import add, dot, norm, scale
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland import SAM, XSAM
from lowland.core.errors import ArgumentError, UsageError


def gradients(run: Run, data: Any, rho: float, k: int) -> tuple[Any, Any, Any]:
    """g(w), the ascent of k steps, and the gradient at its end."""
    first = PROBLEM.gradient(run.w, data)
    e = scale(first, rho / k / norm(first))
    for _ in range(k - 1):
        g = PROBLEM.gradient(add(run.w, e), data)
        e = add(e, g, rho / k / norm(g))
    return first, e, PROBLEM.gradient(add(run.w, e), data)


@pytest.mark.parametrize("base", BASES)
def test_at_alpha_one_it_is_sam(base: str) -> None:
    path = path_of(XSAM(rho=0.2, alpha=1), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


def test_at_alpha_zero_it_has_the_direction_of_the_first_gradient() -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), XSAM(rho=0.3, alpha=0.0), MOMENTUM)
    for data, lr in zip(some(), LRS, strict=True):
        first, _, last = gradients(run, data, 0.3, 1)
        run.step(data, lr)
        assert_same([run.grad], [scale(first, norm(last) / norm(first))], SAME)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0, 1.7, 6.0])
def test_the_direction_is_at_its_angle_on_the_circle_and_as_long_as_the_last_gradient(k: int, alpha: float) -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), XSAM(rho=0.5, k=k, alpha=alpha), MOMENTUM)
    for data, lr in zip(some(5), LRS, strict=False):
        _, e, h = gradients(run, data, 0.5, k)
        run.step(data, lr)
        d = run.grad
        theta = np.arccos(dot(e, h) / norm(e) / norm(h))
        assert norm(d) == pytest.approx(norm(h), rel=1e-10)
        assert dot(d, e) / norm(d) / norm(e) == pytest.approx(np.cos(alpha * theta), abs=1e-9)
        assert dot(d, h) / norm(d) / norm(h) == pytest.approx(np.cos((1 - alpha) * theta), abs=1e-9)


def test_the_chosen_direction_has_the_largest_loss_of_all_candidates() -> None:
    method = XSAM(rho=0.4, rho_max=1.0, every=1, alpha_max=4.0, alpha_delta=0.25)
    run, chosen = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM), set()
    for data, lr in zip(some(4), LRS, strict=False):
        losses = []
        for alpha in 0.25 * np.arange(17):
            fixed = Run(PROBLEM, run.w, XSAM(rho=0.4, alpha=float(alpha)), MOMENTUM)
            fixed.step(data, 0.0)
            d = fixed.grad
            losses.append(PROBLEM.loss(add(run.w, d, 1.0 / norm(d)), data))
        run.step(data, lr)
        assert run.engine.memory["alpha"].tolist() == [0.25 * np.argmax(losses)]
        chosen.add(int(np.argmax(losses)))
    assert len(chosen) > 1


def test_searches_are_as_far_apart_as_asked_and_cost_a_forward_pass_for_each_candidate() -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), XSAM(k=2, every=4), MOMENTUM)
    passes = []
    for data, lr in zip(some(9), LRS, strict=False):
        before = run.engine.cost.probes
        run.step(data, lr)
        passes.append(run.engine.cost.probes - before)
    assert passes == [3 + 21, 3, 3, 3, 3 + 21, 3, 3, 3, 3 + 21]
    assert run.engine.cost.gradients == 3 * 9


@pytest.mark.parametrize(("most", "delta", "count"), [(2.0, 0.1, 21), (8.0, 0.25, 33), (0.0, 0.1, 1), (1.0, 0.3, 4)])
def test_candidates_reach_up_to_alpha_max(most: float, delta: float, count: int) -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), XSAM(alpha_max=most, alpha_delta=delta), MOMENTUM)
    run.step(PROBLEM.batch(0), 0.1)
    assert run.engine.cost.probes == 2 + count


def test_inside_late_the_first_step_searches() -> None:
    method = lowland.Late(inner=XSAM(every=100), start=3)
    run = Run(PROBLEM, PROBLEM.weights(1), method, MOMENTUM)
    for data, lr in zip(some(5), LRS, strict=False):
        before = run.engine.cost.probes
        run.step(data, lr)
        assert run.engine.cost.probes - before == [1, 1, 1, 23, 2][run.engine.step - 1]


@pytest.mark.parametrize("rho", [5e-4, 1e-3, 1e-6])
@pytest.mark.parametrize("alpha", [None, 0.5, 2.0])
def test_float32_gives_no_nan_at_angles_that_round_to_nothing(rho: float, alpha: float | None) -> None:
    """Where the release's arccos gets more than 1; d is then SAM's gradient up to the angle."""
    model = net(dtype=torch.float32)
    method = XSAM(rho=rho, rho_max=2 * rho, every=3, alpha=alpha)
    engine = lowland.Engine(method, model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn)
    sam = lowland.Engine(SAM(rho=rho), other := copy.deepcopy(model), sgd(other), loss_fn)
    for step in range(40):
        with torch.no_grad():
            for p, q in zip(other.parameters(), model.parameters(), strict=True):
                p.copy_(q)
        sam.optimizer.zero_grad()
        engine.optimizer.zero_grad()
        data = batch(step, dtype=torch.float32)
        engine.backward(data)
        sam.backward(data)
        d, expected = (torch.cat([p.grad.reshape(-1) for p in m.parameters()]) for m in (model, other))
        # the angle is about rho times the curvature; rounding of the two gradients is about 1e-6 of their length
        assert float((d - expected).norm() / expected.norm()) < 30 * rho + 1e-5
        engine.optimizer.step()
    assert all(w.isfinite().all() for w in weights(model))


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_along_a_line_it_is_sam(slope: float) -> None:
    """With one weight v0 and v1 are parallel or opposite, which is no circle: beyond the minimum the gradient turns."""
    problem = Quadratic(np.array([[2.0]]), np.array([0.0]))
    nothing = np.zeros((1, 1)), np.zeros(1)
    for method in (XSAM(rho=0.5, alpha=0.3), XSAM(rho=0.5, every=1)):
        run = Run(problem, [np.array([slope * 0.1 - 0.6])], method, drive.sgd())
        run.step(nothing, 0.0)
        sam = Run(problem, run.w, SAM(rho=0.5), drive.sgd())
        sam.step(nothing, 0.0)
        assert_same([run.grad], [sam.grad], SAME)


def test_opposite_vectors_have_no_circle() -> None:
    """Concave along a line: the ascent steps over the maximum, where the gradient points back."""
    problem = Quadratic(np.diag([-2.0, -2.0]), np.zeros(2))
    nothing = np.zeros((1, 2)), np.zeros(1)
    run = Run(problem, [np.array([0.1, 0.05])], XSAM(rho=0.5, alpha=0.3), drive.sgd())
    g = problem.gradient(run.w, nothing)
    h = problem.gradient(add(run.w, g, 0.5 / norm(g)), nothing)
    assert dot(g, h) < 0
    run.step(nothing, 0.0)
    assert_same([run.grad], [h], SAME)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_alpha(value: float) -> None:
    for nth in (1, 2, 3, 9):
        model, calls = net(), [0]

        def loss(m: Any, b: Any, nth: int = nth, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return loss_fn(m, b) * (value if calls[0] == nth else 1.0)

        engine = lowland.Engine(XSAM(every=1), model, sgd(model), loss)
        engine.backward(batch())
        assert engine.memory["alpha"].tolist() == [1.0]
        engine.backward(batch())
        assert engine.memory["alpha"].isfinite().all()


def test_losses_below_zero_are_searched_as_well() -> None:
    model, lower = net(), net()
    one = lowland.Engine(XSAM(every=1), model, sgd(model), loss_fn)
    other = lowland.Engine(XSAM(every=1), lower, sgd(lower), lambda m, b: loss_fn(m, b) - 100)
    one.backward(batch())
    other.backward(batch())
    assert one.memory["alpha"].tolist() == other.memory["alpha"].tolist() != [0.0]


def test_a_group_with_radius_zero_is_not_displaced_by_the_search() -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), XSAM(every=1), MOMENTUM, groups=in_groups([0.3, 0.0, 0.3, 0.3]))
    before, passes, loss = run.w, [], run.engine.work.loss_fn
    assert loss is not None

    def watching(model: Any, data: Any) -> Any:
        passes.append([not np.array_equal(a, b) for a, b in zip(drive.arrays(model.parameters()), before, strict=True)])
        return loss(model, data)

    run.engine.work.loss_fn = watching
    run.step(PROBLEM.batch(0), 0.0)
    assert passes == [[False] * 4, *[[True, False, True, True]] * 22]
    assert run.grad[1].any()


@pytest.mark.parametrize("field", [
    {"rho_max": -1}, {"k": 0}, {"k": 1.5}, {"every": 0}, {"alpha_max": -0.1}, {"alpha_delta": 0}, {"alpha": -1.0}
])  # fmt: skip
def test_other_fields_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(field))} must be"):
        XSAM(**field)


# On several ranks


def parts(step: int) -> list[Any]:
    """Batches whose losses rise along different directions."""
    return [batch(100 * rank + step) for rank in range(2)]


def on_one(method: XSAM, data: Any) -> float:
    model = net()
    engine = lowland.Engine(method, model, sgd(model), loss_fn)
    engine.backward(data)
    return float(engine.memory["alpha"])


SEARCHING = XSAM(rho=0.5, rho_max=2.0, every=1, alpha_max=6.0, alpha_delta=0.05)


def _ranks(wrapper: str) -> dict[str, Any]:
    model: nn.Module = net()
    rank = torch.distributed.get_rank()
    options: dict[str, Any] = {}
    if wrapper == "ddp":
        model = DistributedDataParallel(model)
    else:
        options["mesh"] = init_device_mesh("cpu", (2,), mesh_dim_names=(wrapper,))
    engine = lowland.Engine(SEARCHING, model, sgd(model), loss_fn, **options)
    alphas = []
    for step in range(4):
        engine.backward(parts(step)[rank if wrapper != "probe" else 0])
        alphas.append(float(engine.memory["alpha"]))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return {"alphas": alphas, "weights": weights(model), "forwards": engine.cost.forwards}


def _alone(halves: bool) -> tuple[list[float], list[Tensor]]:
    model, alphas = net(), []
    engine = lowland.Engine(SEARCHING, model, sgd(model), loss_fn)
    for step in range(4):
        data = [torch.cat(x) for x in zip(*parts(step), strict=True)] if halves else parts(step)[0]
        engine.backward(data)
        alphas.append(float(engine.memory["alpha"]))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return alphas, weights(model)


@pytest.mark.parametrize("wrapper", ["ddp", "replicate", "probe"])
def test_all_ranks_choose_by_the_loss_of_all_examples(wrapper: str) -> None:
    alphas, expected = _alone(halves=wrapper != "probe")
    found = on_ranks(2, _ranks, wrapper)
    for rank in found:
        assert rank["alphas"] == pytest.approx(alphas)
        torch.testing.assert_close(rank["weights"], expected, rtol=1e-10, atol=1e-12)
    assert found[0]["alphas"] == found[1]["alphas"]
    if wrapper != "probe":  # each rank alone would have chosen otherwise
        assert any(on_one(SEARCHING, part) != alphas[0] for part in parts(0))


def test_alpha_is_everybody_s_after_a_resume_on_other_ranks() -> None:
    saved = {"alpha": torch.tensor([1.5]), "t": 7}
    assert XSAM().reshard([saved, saved], 2, 3) == saved


def test_averages_are_of_tensors() -> None:
    model = net()
    engine = lowland.Engine(SAM(), model, sgd(model), loss_fn)
    assert engine.averaged(torch.tensor([2.0, 4.0])).tolist() == [2.0, 4.0]
    with pytest.raises(UsageError, match=r"engine.averaged must be given a tensor .* given a float"):
        engine.averaged(0.5)  # type: ignore[arg-type]


def test_alpha_matters() -> None:
    paths = [path_of(XSAM(rho=0.3, alpha=alpha), some()) for alpha in (0.5, 1.0, 1.5)]
    assert_differ(paths[0], paths[1])
    assert_differ(paths[1], paths[2])
    train(engine := lowland.Engine(XSAM(), model := net(), sgd(model), loss_fn), 3)
    assert engine.memory["t"] == 3
