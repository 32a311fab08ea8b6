"""Accelerate with a method: trajectories by hand, the plain loop, checkpoints, refusals."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("accelerate", exc_type=ImportError)

import torch
from torch.nn.functional import cross_entropy

import lowland
from integrations.loops import Loop, by_hand, data, fresh, losses, net
from integrations.methods import METHODS
from integrations.trajectories import adamw, apart, sgd
from lowland.core.errors import ArgumentError, LossError, StateError, UsageError
from lowland.integrations import refusals
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


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("method", ["plain", lowland.SAM(rho=0.0)])
def test_without_a_perturbation_it_is_the_plain_loop_bit_for_bit(method: Any, k: int) -> None:
    model, twin = net(), net()
    Loop(method, model, k, clip=0.05).train()
    accelerator = fresh(k)
    loader = torch.utils.data.DataLoader(data(), batch_size=8)
    twin, optimizer, loader = accelerator.prepare(twin, sgd(twin), loader)
    for x, y in loader:
        with accelerator.accumulate(twin):
            accelerator.backward(cross_entropy(twin(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(twin.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
    assert apart(model, twin) == 0


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


def made(**given: Any) -> Sharpness:
    accelerator, model = fresh(), net()
    model, optimizer = accelerator.prepare(model, sgd(model))
    default = {"accelerator": accelerator, "method": lowland.SAM(), "model": model, "optimizer": optimizer}
    return Sharpness(**{**default, "loss_fn": losses, **given})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"accelerator": None}, ArgumentError, "pass the object that prepares model and optimizer"),
        ({"method": lowland.SAM}, ArgumentError, "but is the class"),
        ({"model": net()}, UsageError, "model must be what accelerator.prepare returned"),
        ({"optimizer": sgd(net())}, UsageError, "would step with every micro-batch; write: model, optimizer"),
        ({"loss_fn": None}, ArgumentError, "Sharpness runs the model by itself"),
        ({"scaler": None}, ArgumentError, r"write Accelerator\(mixed_precision=…\)"),
        ({"resume": "warm"}, ArgumentError, "resume must be"),
    ],
)
def test_arguments_that_break_their_rule(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(**given)


def test_a_closure_optimizer_is_refused() -> None:
    """S2: with accumulation the closures of all micro-batches but the last were never called."""
    accelerator, model = fresh(2), net()
    closing = lowland.ClosureOptimizer(lowland.Engine(lowland.SAM(), model, sgd(model)))
    model, optimizer = accelerator.prepare(model, closing)
    with pytest.raises(UsageError, match="pass the SGD inside it"):
        Sharpness(accelerator, lowland.SAM(), model, optimizer, losses)
    with pytest.raises(UsageError, match="would train without the method"):
        optimizer.step()


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM", "XLA"])
def test_set_ups_whose_gradients_are_elsewhere(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    accelerator, model = fresh(), net()
    model, optimizer = accelerator.prepare(model, sgd(model))
    monkeypatch.setattr(type(accelerator), "distributed_type", SimpleNamespace(name=kind))
    with pytest.raises(UsageError, match=f"but {kind} keeps them elsewhere; train with DistributedDataParallel"):
        Sharpness(accelerator, lowland.SAM(), model, optimizer, losses)


def test_fsdp_must_be_of_version_2() -> None:
    for version, right in ((1, False), (2, True)):
        plugin = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=version))
        accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name="FSDP"), state=plugin)
        if right:
            refusals.check_accelerator(accelerator)
            continue
        with pytest.raises(UsageError, match="set fsdp_version: 2"):
            refusals.check_accelerator(accelerator)


def test_without_accelerate_the_error_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['accelerate'] = None\n"
        "from lowland.core.errors import MissingExtraError\n"
        "try:\n    import lowland.integrations.accelerate\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "accelerate is not installed; run: pip install 'lowland[accelerate]'"
