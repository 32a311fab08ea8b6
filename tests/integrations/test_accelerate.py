"""Accelerate with a method: trajectories by hand, the plain loop, checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

import torch
from torch.nn.functional import cross_entropy

import lowland
from integrations.loops import Loop, by_hand, data, fresh, losses, net
from integrations.methods import METHODS
from integrations.trajectories import adamw, apart, sgd
from lowland.core.errors import LossError, StateError, UsageError
from lowland.integrations.accelerate import Sharpness

KINDS = ["sam", "sampa", "looksam", "msam"]


@pytest.mark.parametrize("base", [sgd, adamw])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_one_perturbation_for_all_micro_batches(kind: str, k: int, base: Any) -> None:
    """S3: an undivided loss in engine.backward was 0.17 to 0.35 away; here nobody divides."""
    model = net()
    twin = copy.deepcopy(model)
    loop = Loop(kind, model, k, optimizer=base).train()
    assert loop.losses == pytest.approx(by_hand(kind, twin, k, optimizer=base), abs=1e-10)
    assert apart(model, twin) < 1e-10
    assert loop.sharp.engine.step == 24 // k
    assert loop.sharp.loss is loop.sharp.engine.loss


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_and_a_ragged_end(kind: str) -> None:
    """188 rows: the last step has micro-batches of 8 and 4 rows, which weigh by their rows."""
    model = net()
    twin = copy.deepcopy(model)
    Loop(kind, model, 2, clip=0.05, rows=188).train()
    by_hand(kind, twin, 2, clip=0.05, rows=188)
    assert apart(model, twin) < 1e-10


SAME: dict[str, dict[str, Any]] = {
    "k=1": {},
    "k=2": {"k": 2},
    "k=3": {"k": 3, "bound": 1e-12},  # accelerate divides by 3, lowland multiplies by a third
    "k=4": {"k": 4},
    "dropout": {"k": 2, "dropout": 0.3},
    "bf16": {"k": 2, "dtype": torch.float32, "mixed_precision": "bf16"},
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("method", ["plain", lowland.SAM(rho=0.0)])
def test_without_a_perturbation_it_is_the_plain_loop_bit_for_bit(method: Any, case: str) -> None:
    given = {"k": 1, "dropout": 0.0, "dtype": torch.float64, "bound": 0.0, **SAME[case]}
    k, dropout, dtype, bound = (given.pop(name) for name in ("k", "dropout", "dtype", "bound"))
    x, y = data().tensors
    rows, found = torch.utils.data.TensorDataset(x.to(dtype), y), []
    for sharp in (True, False):
        accelerator, model = fresh(k, **given), net(dropout).to(dtype)
        base = sgd(model)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, 24 // k)
        loader = torch.utils.data.DataLoader(rows, batch_size=8)
        model, optimizer, loader, schedule = accelerator.prepare(model, base, loader, schedule)
        door = Sharpness(accelerator, METHODS.get(method, method), model, optimizer, losses, rng="shared")
        torch.manual_seed(3)
        for batch in loader:
            with accelerator.accumulate(model):
                if sharp:
                    door.backward(batch)
                else:
                    accelerator.backward(cross_entropy(model(batch[0]), batch[1]))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.05)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        found.append(model)
    assert apart(*found) <= bound


def test_periods_schedules_and_clipping_by_value_count_optimizer_steps() -> None:
    """S11: with one step of the method for each micro-batch, LookSAM(k=5) would take 5 SAM steps in 24."""
    accelerator, model = fresh(4), net()
    base = sgd(model)
    schedule = torch.optim.lr_scheduler.StepLR(base, 2, gamma=0.5)
    loader = torch.utils.data.DataLoader(data(), batch_size=8)
    model, optimizer, loader, schedule = accelerator.prepare(model, base, loader, schedule)
    method = lowland.LookSAM(rho=lowland.schedule.linear(0.01, 0.1, steps=6), k=5)
    sharp = Sharpness(accelerator, method, model, optimizer, losses)
    for batch in loader:
        with accelerator.accumulate(model):
            sharp.backward(batch)
            if accelerator.sync_gradients:
                accelerator.clip_grad_value_(model.parameters(), 0.01)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    twin = net()
    hand, x, y = sgd(twin), *data().tensors
    schedule = torch.optim.lr_scheduler.StepLR(hand, 2, gamma=0.5)
    engine = lowland.Engine(method, twin, hand, losses)
    for start in range(0, 192, 32):
        engine.backward((x[start : start + 32], y[start : start + 32]))
        torch.nn.utils.clip_grad_value_(twin.parameters(), 0.01)
        hand.step()
        schedule.step()
        hand.zero_grad()
    assert apart(model, twin) < 1e-12
    assert (sharp.engine.step, sharp.engine.cost.gradients) == (6, 8)


def test_statistics_of_batch_norm_are_updated_once_for_a_micro_batch() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 3)).double()
    Loop("sam", model, 2).train()
    assert int(model[1].num_batches_tracked) == 24


def test_what_fails_inside_a_step_leaves_no_trace() -> None:
    calls = [0]

    def failing(model: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:  # the second pass, at the second micro-batch
            raise RuntimeError("out of memory")
        return losses(model, batch)

    model, twin = net(), net()
    loop = Loop("sam", model, 2, loss_fn=failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.train()
    assert apart(model, twin) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert (loop.sharp.engine.step, loop.sharp._held) == (0, [])
    loop.train()
    by_hand("sam", twin, 2)
    assert apart(model, twin) < 1e-10


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_goes_on_bit_for_bit(tmp_path: Path, kind: str, dropout: float) -> None:
    """Between two SAM steps of LookSAM, by accelerator.save_state alone."""
    whole = Loop(kind, net(dropout), 2)
    whole.train(last=10).save(tmp_path)
    whole.train(first=10)
    resumed = Loop(kind, net(dropout), 2).load(tmp_path).train(first=10)
    assert apart(whole.model, resumed.model) == 0
    assert resumed.sharp.engine.step == 12


def test_several_doors_have_files_of_their_own(tmp_path: Path) -> None:
    def both() -> Any:
        accelerator, a, b = fresh(), net(), net()
        a, b, first, second = accelerator.prepare(a, b, sgd(a), sgd(b))
        doors = [Sharpness(accelerator, METHODS[kind], m, o, losses) for kind, m, o in
                 (("sam", a, first), ("sam", a, first), ("looksam", b, second))]  # fmt: skip
        return accelerator, doors

    accelerator, (_, first, second) = both()
    batch = data(8).tensors
    first.backward(batch)
    for _ in range(2):
        second.backward(batch)
    accelerator.save_state(str(tmp_path))
    assert sorted(p.name for p in tmp_path.glob("lowland*")) == ["lowland1_0.pt", "lowland_0.pt"]
    accelerator, (_, first, second) = both()
    accelerator.load_state(str(tmp_path))
    assert (first.engine.step, second.engine.step) == (1, 2)


def test_a_checkpoint_of_plain_training_is_refused(tmp_path: Path) -> None:
    """S9: forgotten, the engine's state was 0.028 away."""
    plain = fresh()
    model = net()
    plain.prepare(model, sgd(model))
    plain.save_state(str(tmp_path))
    with pytest.raises(StateError, match=r"Sharpness\(…, resume=\"cold\"\)"):
        Loop("looksam", net()).load(tmp_path)
    assert Loop("looksam", net(), resume="cold").load(tmp_path).sharp.engine.step == 0
    assert Loop("sam", net()).load(tmp_path).sharp.engine.step == 0


def test_micro_batches_that_are_held(tmp_path: Path) -> None:
    model = net()
    loop = Loop("sam", model, 2)
    loop.train(last=3)
    with pytest.raises(UsageError, match=r"1 micro-batches are held.*after optimizer.step"):
        loop.save(tmp_path)
    loop.sharp.discard()
    loop.save(tmp_path)
    held = torch.ones(8, 6, dtype=torch.float64), torch.zeros(8, dtype=torch.long)
    loop.accelerator.gradient_state._set_sync_gradients(False)
    assert loop.sharp.backward(held) is None
    held[0].zero_()  # as a loader that refills its buffers
    assert loop.sharp._held[0][0].eq(1).all()
    loop.load(tmp_path)
    assert not loop.sharp._held


def test_a_loop_that_ends_in_the_middle_of_a_step_goes_on_as_the_plain_loop() -> None:
    """accelerate goes on with its count, so the micro-batch that is held belongs to the next loop's first step."""
    found = []
    for sharp in (True, False):
        accelerator, model = fresh(2), net()
        loader = torch.utils.data.DataLoader(data(40), batch_size=8)
        model, optimizer, loader = accelerator.prepare(model, sgd(model), loader)
        door = Sharpness(accelerator, METHODS["plain"], model, optimizer, losses)
        for stops in (3, 5):
            for i, batch in enumerate(loader):
                if i == stops:
                    break
                with accelerator.accumulate(model):
                    if sharp:
                        door.backward(batch)
                    else:
                        accelerator.backward(cross_entropy(model(batch[0]), batch[1]))
                    optimizer.step()
                    optimizer.zero_grad()
        assert not door._held
        assert door.engine.step == (4 if sharp else 0)
        found.append(model)
    assert apart(*found) == 0


def test_a_mean_of_several_micro_batches_is_refused() -> None:
    def mean(model: Any, batch: Any) -> Any:
        return losses(model, batch).mean()

    assert Loop("sam", net(), loss_fn=mean).train().sharp.engine.step == 24
    with pytest.raises(LossError, match=r"return one loss per example.*or lowland\.Loss"):
        Loop("sam", net(), 2, loss_fn=mean).train()

    def total(model: Any, batch: Any) -> Any:
        return lowland.Loss(losses(model, batch).sum(), len(batch[0]))

    model, twin = net(), net()
    Loop("msam", model, 2, loss_fn=total).train()
    by_hand("msam", twin, 2)
    assert apart(model, twin) < 1e-10


def test_mixed_precision_is_the_accelerator_s() -> None:
    model, twin = net().float(), net().float()
    accelerator = fresh(2, mixed_precision="bf16")
    model, optimizer = accelerator.prepare(model, sgd(model))
    sharp = Sharpness(accelerator, METHODS["sam"], model, optimizer, lambda m, b: losses(m, (b[0].float(), b[1])))
    hand = lowland.Engine(METHODS["sam"], twin, base := sgd(twin), lambda m, b: losses(m, (b[0].float(), b[1])))
    x, y = data().tensors
    for i in range(0, 64, 16):
        for j in (i, i + 8):
            with accelerator.accumulate(model):
                sharp.backward((x[j : j + 8], y[j : j + 8]))
                optimizer.step()
                optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            hand.backward(lowland.Parts([(x[j : j + 8], y[j : j + 8]) for j in (i, i + 8)]))
        base.step()
        base.zero_grad()
    assert apart(model, twin) < 1e-6


def test_a_scaler_skips_what_overflows() -> None:
    accelerator, model = fresh(), net().float()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    model, optimizer = accelerator.prepare(model, sgd(model))
    factor = [1.0]
    sharp = Sharpness(
        accelerator, METHODS["looksam"], model, optimizer, lambda m, b: losses(m, (b[0].float(), b[1])) * factor[0]
    )
    before = None
    for step in range(4):
        factor[0] = float("inf") if step == 2 else 1.0
        before = copy.deepcopy(model)
        sharp.backward(data(8).tensors)
        optimizer.step()
        optimizer.zero_grad()
        assert (apart(model, before) == 0) == (step == 2)
        assert optimizer.step_was_skipped == (step == 2)
    assert all(v.isfinite().all() for v in sharp.engine.memory["g_v"])
