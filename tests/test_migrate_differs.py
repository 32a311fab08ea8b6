"""What docs/migrate.md says under "What differs": each sentence that says that something is otherwise, run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from migrated import davda54, gsam, optax
from migrated.page import LOOP, after, apart, pairs, trained, weights
from migrated.rules import ascent, gradients, moved
from official.files import Array, recorded
from official.follow import model_of
from torch import Tensor, nn

import lowland

SEEN = 1e-3  # weights move by 0.3 to 2
PO = {name: pairs()[f"{name} of pytorch_optimizer"] for name in ("SAM", "LookSAM", "WSAM")}


class LookSAMRule:
    """LookSAM split by tensor, from its formula: ``g + alpha * ||g|| * g_v / (||g_v|| + eps)`` between SAM steps."""

    def __init__(self, params: Any, eps: float, rounded: bool) -> None:
        self.params, self.eps, self.rounded, self.t = list(params), eps, rounded, 0
        self.base = torch.optim.SGD(self.params, lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.kept: list[Tensor] = []

    def step(self, closure: Any) -> None:
        g = gradients(self.params)
        if self.t % 5 == 0:
            with moved(self.params, ascent(self.params, g, [0.1] * len(g), rounded=self.rounded)):
                closure()
            sharp = gradients(self.params)
            self.kept = [s - (s * x).sum() / x.square().sum() * x for s, x in zip(sharp, g, strict=True)]
        else:
            for p, x, v in zip(self.params, g, self.kept, strict=True):
                p.grad = x + 0.7 * x.norm() * v / (v.norm() + self.eps)
        self.t += 1
        self.base.step()


def replaced(code: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    return code


# All of them


@pytest.mark.parametrize("package", ["sam", "pytorch_optimizer"])
def test_a_training_goes_on_with_the_state_of_the_old_base_optimizer(package: str) -> None:
    top, loop = replaced(PO["SAM"][0], ("from pytorch_optimizer", f"from {package}")).split("\nfor ")
    batch = "inputs, targets in list(loader)"
    assert loop.startswith("inputs, targets in loader:")
    first = loop.replace("inputs, targets in loader", f"{batch}[:20]")
    new = PO["SAM"][1].replace("rho=0.05", "rho=1.0")  # the groups bring the 0.05
    made, rest = new.split("engine = ")
    load = (
        "old = optimizer.base_optimizer.state_dict()\n"
        + made
        + "optimizer.load_state_dict(old)\noptimizer.zero_grad()\nengine = "
    )
    rest = replaced(rest, ("batch in loader", "batch in list(loader)[20:]"))
    moved_over = trained(f"{top}\nfor {first}\n{load}{rest}").final
    assert apart(moved_over, trained(f"{top}\nfor {loop}").final) < (1e-12 if package == "sam" else 1e-6)


# davda54/sam


@contextmanager
def at_zero() -> Iterator[tuple[nn.Module, Array]]:
    """A network whose loss has a gradient of zero, and its weights, which must stay."""
    model = model_of(recorded("sam_mlp_sgd"))
    start = weights(model)
    yield model, start
    assert apart(weights(model), start) == 0


def test_a_gradient_of_zero_displaces_nothing() -> None:
    inputs = torch.ones(4, 6, dtype=torch.float64)
    with at_zero() as (model, start):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen: list[Array] = []

        def zero(model: nn.Module, batch: Tensor) -> Tensor:
            seen.append(weights(model))
            return 0 * model(batch).sum(1)

        lowland.Engine(lowland.SAM(rho=0.5), model, optimizer, zero).backward(inputs)
        optimizer.step()
        assert [apart(there, start) for there in seen] == [0, 0]
    with at_zero() as (model, start):
        old = davda54.SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1)
        (0 * model(inputs).sum()).backward()
        old.first_step()
        assert apart(weights(model), start) == 0
        old.second_step()


def test_asam_s_own_eta_has_other_weights() -> None:
    old = after("`ASAM(rho=2.0, geometry=Adaptive(eta=0))`", "")
    assert apart(old.final, after("`ASAM(rho=2.0)`", "").final) > SEEN
    assert lowland.ASAM().geometry == lowland.Adaptive(eta=0.01)


def test_a_group_of_radius_0_leaves_the_others_further_away() -> None:
    weight, grad = [torch.ones(3), torch.ones(4)], [torch.ones(3), torch.ones(4)]
    old = ascent(weight, grad, [0.05, 0.0])
    new = lowland.L2().ascent(weight, grad, [0.05, 0.0])
    assert float(new[0].norm()) == pytest.approx(0.05)
    assert float(old[0].norm()) == pytest.approx(0.05 * (3 / 7) ** 0.5)
    assert float(old[1].norm()) == float(new[1].norm()) == 0


# pytorch_optimizer


def test_pytorch_optimizer_rounds_norms_to_float32() -> None:
    old, new = (trained(code).path for code in PO["SAM"])
    exact = replaced(PO["SAM"][0], ("from pytorch_optimizer", "from sam"))
    rounded = replaced(exact, ("rho=0.05", "rho=0.05, rounded=True"))
    assert 1e-11 < apart(old, new) < 1e-7
    assert apart(old, trained(rounded).path) < 1e-12
    assert apart(new, trained(exact).path) < 1e-12


def test_pytorch_optimizer_s_looksam_adds_a_number_to_norms() -> None:
    old, new = (trained(code).path for code in PO["LookSAM"])
    assert 1e-7 < apart(old, new) < 5e-6
    top, loop = PO["LookSAM"][0].split("\nfor ")
    assert top
    code = "optimizer = Rule(model.parameters(), EPS)\noptimizer.zero_grad = optimizer.base.zero_grad\nfor " + loop
    # 1e-9: the length of the kept vector is made 1, which magnifies its rounding.
    for eps, path in (("1e-8, True", old), ("0.0, False", new)):
        assert apart(trained(code.replace("EPS", eps), Rule=LookSAMRule).path, path) < 1e-9


def test_looksam_s_decomposition_by_tensor_is_another_method() -> None:
    whole = replaced(PO["LookSAM"][1], (', decomposition="tensor"', ""))
    assert apart(trained(whole).final, trained(PO["LookSAM"][1]).final) > SEEN


def test_pytorch_optimizer_s_looksam_takes_two_gradients_in_every_step() -> None:
    calls: list[int] = []
    counted = replaced(
        PO["LookSAM"][0], ("        loss.backward()", "        loss.backward()\n        calls.append(1)")
    )
    trained(counted, calls=calls)
    assert len(calls) == 2 * 40
    assert trained(PO["LookSAM"][1]).names["engine"].cost.gradients == 40 + 8


def test_a_closure_alone_is_stale_in_pytorch_optimizer_and_right_in_lowland() -> None:
    right = trained(PO["SAM"][1]).final
    alone = replaced(PO["SAM"][0], ("    loss = closure()\n", ""))
    assert apart(trained(alone).final, right) > SEEN  # warnings are errors here, so nothing was said
    made = "SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9, weight_decay=5e-4)"
    base = "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)"
    ours = replaced(alone, (made, f"lowland.ClosureOptimizer(lowland.Engine(lowland.SAM(), model, {base}))"))
    assert apart(trained(ours).final, right) < 1e-12


# composer


def test_a_sam_step_at_the_start_of_the_interval_has_other_weights() -> None:
    new = pairs()["composer"][1]
    assert apart(trained(new).final, trained(replaced(new, (", offset=4", ""))).final) > SEEN


def test_torch_s_scaler_refuses_closures() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(RuntimeError, match="Closure"):
        torch.amp.GradScaler("cpu").step(optimizer, closure=lambda: 0.0)


def test_looksam_costs_as_much_as_an_interval() -> None:
    looked = after("`LookSAM(k=5)`", "").names["engine"].cost
    assert looked.gradients == trained(pairs()["composer"][1]).names["engine"].cost.gradients == 48


# The GSAM release


def test_the_release_s_learning_rate_is_one_step_late() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = gsam.LinearScheduler(T_max=4, max_value=0.1, min_value=0.02, optimizer=optimizer)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert seen == pytest.approx([0.1, 0.1, 0.08, 0.06])
    before, new = pairs()["The GSAM release"]
    punctual = "torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)"
    late = "torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - 0.99 * max(step - 1, 0) / steps)"
    assert apart(trained(replaced(new, (late, punctual))).final, trained(before).final) > SEEN


def test_follow_lr_stays_between_its_ends_where_the_release_extrapolates() -> None:
    class Fixed:
        def __init__(self, lr: float) -> None:
            self.lr = lr

        def get_last_lr(self) -> list[float]:
            return [self.lr]

    ours = lowland.schedule.follow_lr(0.1, 0.02, lr_high=0.1, lr_low=0.05)
    for lr, old, new in ((0.1, 0.1, 0.1), (0.075, 0.06, 0.06), (0.2, 0.26, 0.1), (0.025, -0.02, 0.02)):
        release = gsam.ProportionScheduler(Fixed(lr), max_lr=0.1, min_lr=0.05, max_value=0.1, min_value=0.02)
        assert release.step() == pytest.approx(old)
        assert ours.at(0, lr) == pytest.approx(new)


def test_gradients_accumulate_in_lowland_and_not_in_the_release() -> None:
    step = "    optimizer.step()\n    optimizer.zero_grad()\n    scheduler.step()"
    once = replaced(pairs()["The GSAM release"][1], (step, "    break"))
    twice = replaced(once, ("engine.backward(batch)", "engine.backward(batch); engine.backward(batch)"))
    g, h = (trained(code).model for code in (once, twice))
    for p, q in zip(g.parameters(), h.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert q.grad.norm() > 1.9 * p.grad.norm()
    before = pairs()["The GSAM release"][0]
    held = "    for p in model.parameters():\n        p.grad = torch.ones_like(p)\n    optimizer.set_closure"
    assert apart(trained(before).final, trained(replaced(before, ("    optimizer.set_closure", held))).final) == 0


# The Momentum-SAM release


def test_a_changed_radius_leaves_a_remainder_in_the_release() -> None:
    before, new = pairs()["The Momentum-SAM release"]
    risen = [
        replaced(before, ("    loss = ", "    optimizer.rho = 3.0 * count / steps; count += 1\n    loss = ")),
        replaced(new, ("rho=0.3", "rho=lowland.schedule.linear(0.0, 3.0, steps=steps)")),
    ]
    old, ours = (trained(f"count = 0\n{code}").final for code in risen)
    assert apart(old, ours) > SEEN


def test_momentum_sam_takes_several_groups() -> None:
    groups = '[{"params": [p]} for p in model.parameters()]'
    for optimizer in ("SGD", "Adam", "AdamW"):
        momentum = ", momentum=0.9" if optimizer == "SGD" else ""
        paths = []
        for params in ("model.parameters()", groups):
            made = f"optimizer = torch.optim.{optimizer}({params}, lr=0.01{momentum})\n"
            paths.append(
                trained(
                    f"{made}engine = lowland.Engine(lowland.MomentumSAM(rho=0.3), model, optimizer, loss_fn)\n{LOOP}"
                ).path
            )
        assert apart(*paths) < 1e-12


# optax


def test_a_gradient_of_zero_is_nan_in_optax() -> None:
    params = {"w": torch.zeros(3)}
    updates, _ = optax.normalize().update(params, None, params)
    assert updates["w"].isnan().all()


def test_a_new_batch_for_every_update_is_another_method() -> None:
    before, new = pairs()["Transparent mode"]
    other = replaced(
        before,
        ("    for _ in range(2):\n        updates", "    updates"),
        ("\n        params = optax", "\n    params = optax"),
    )
    found = trained(new)
    assert found.names["engine"].step == 40
    assert apart(trained(other).final, found.final) > SEEN
