"""fastai's Learner with a method: trajectories by hand, events, precision, schedules, refusals."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("integrations.torchvision_operators")
pytest.importorskip("fastai.callback.all", exc_type=(ImportError, RuntimeError))

import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import LRFinder
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam, OptimWrapper
from torch import nn
from torch.nn.functional import cross_entropy

import lowland
from integrations.learners import BATCH, BOUND, EPOCHS, LR, ROWS, by_hand, data, fitted, learner, net
from integrations.methods import METHODS
from integrations.trajectories import apart
from lowland.core.errors import ArgumentError, LossError, StateError, UsageError
from lowland.integrations.fastai import REFUSED, Sharpness

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = ["sam", "sampa", "looksam", "msam"]


class Noting(Callback):
    """Counts the events of a step, and notes the losses that a Recorder sees."""

    run_valid = False
    events = ("before_batch", "before_backward", "after_backward", "before_step", "after_step", "after_batch")

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.counts = dict.fromkeys(self.events, 0)

    def __call__(self, name: str) -> Any:
        if name in self.counts and self.learn.training:
            self.counts[name] += 1
        if name == "after_batch" and self.learn.training:
            self.losses.append(float(self.learn.loss))
        return super().__call__(name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learner_follows_the_trajectory_and_its_events_run_once(kind: str) -> None:
    model, twin, noting = net(), net(), Noting()
    learn = fitted(kind, model, noting, GradientClip(0.05))
    losses = by_hand(kind, twin, clip=0.05)
    assert apart(model, twin) < BOUND
    assert noting.losses == pytest.approx(losses, abs=1e-5)
    assert noting.counts == dict.fromkeys(Noting.events, EPOCHS * ROWS // BATCH)
    assert learn.sharpness.engine.step == EPOCHS * ROWS // BATCH
    assert "_backward" not in vars(learn)


@pytest.mark.parametrize("method", ["plain", lowland.SAM(rho=0.0)])
def test_without_a_perturbation_it_is_the_learner_bit_for_bit(method: Any) -> None:
    models = [net(nn.BatchNorm1d(16)), net(nn.BatchNorm1d(16))]
    fitted(method, models[0], GradientClip(0.5))
    plain = learner(models[1], GradientClip(0.5))
    with plain.no_logging():
        plain.fit(EPOCHS)
    assert apart(*models) == 0
    assert all(torch.equal(a, b) for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True))


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam"])
def test_micro_batch_is_the_same_step_in_less_memory(kind: str) -> None:
    model, twin = net(), net()
    fitted(kind, model, micro_batch=3)
    by_hand(kind, twin)
    assert apart(model, twin) < BOUND


def test_a_second_fit_goes_on_and_another_set_of_parameters_begins_anew() -> None:
    model, twin = net(), net()
    learn = fitted("looksam", model, epochs=1)
    with learn.no_logging():
        learn.fit(1)
    by_hand("looksam", twin)
    assert apart(model, twin) < BOUND
    assert learn.sharpness.engine.step == 16
    model[0].requires_grad_(False)
    with learn.no_logging():
        learn.fit(1)
    assert learn.sharpness.engine.step == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    """S9: without the engine's state LookSAM and SAMPa would start anew; learn.load alone is refused."""
    whole = fitted(kind, net(), epochs=1)
    whole.path = tmp_path
    whole.save("half")
    torch.save(whole.sharpness.engine.state_dict(), tmp_path / "engine.pt")
    with whole.no_logging():
        whole.fit(1)

    def loaded(**options: Any) -> Any:
        learn = learner(net(), Sharpness(METHODS[kind], **options))
        learn.path = tmp_path
        learn.create_opt()
        return learn.load("half")

    resumed = loaded()
    resumed.sharpness.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True))
    with resumed.no_logging():
        resumed.fit(1)
    assert apart(whole.model, resumed.model) == 0
    assert resumed.sharpness.engine.step == 16
    if kind in ("sampa", "looksam"):
        with pytest.raises(StateError, match=r"the Learner's optimizer has none.*: Sharpness\(…, resume=\"cold\"\)"):
            loaded().fit(1)
        cold = loaded(resume="cold")
        with cold.no_logging():
            cold.fit(1)
        assert (apart(whole.model, cold.model) > 1e-4) == (kind == "sampa")  # LookSAM stops before a SAM step


def test_a_search_for_a_learning_rate_leaves_no_trace(tmp_path: Path) -> None:
    model, twin = net(), net()
    learn = fitted("looksam", model, epochs=1)
    learn.path = tmp_path
    with learn.no_logging():
        learn.fit(1, cbs=LRFinder(num_it=6, stop_div=False))
        assert learn.sharpness.engine.step == 8
        learn.fit(1)
    by_hand("looksam", twin)
    assert apart(model, twin) < BOUND


def test_progress_is_that_of_the_fit() -> None:
    learn = fitted(lowland.Late(start=0.5, inner=lowland.SAM()), net())
    assert learn.sharpness.engine.cost.gradients == 16 + 8


class OnCPU(MixedPrecision):
    """fastai's mixed precision, whose scaler and autocast are for GPUs, on a CPU."""

    dtype = torch.float16

    def before_fit(self) -> None:
        self.autocast = torch.autocast("cpu", self.dtype)
        self.learn.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=self.dtype == torch.float16)
        self.scales = []


class OnCPUInBF16(OnCPU):
    dtype = torch.bfloat16


@pytest.mark.parametrize("mixed", [OnCPU, OnCPUInBF16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scaler_gives_what_the_engine_gives_bit_for_bit(kind: str, mixed: Any) -> None:
    model, twin = net(), net()
    fitted(kind, model, mixed(), epochs=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if mixed.dtype == torch.float16 else None
    base = torch.optim.SGD(twin.parameters(), lr=LR, momentum=0.9)

    def loss(m: Any, batch: Any) -> Any:
        with torch.autocast("cpu", mixed.dtype):
            mean = cross_entropy(m(batch[0]).float(), batch[1])
        return lowland.Loss(mean * len(batch[0]), len(batch[0])) if kind == "msam" else mean

    engine = lowland.Engine(METHODS[kind], twin, base, loss, scaler=scaler)
    x, y = data()
    for start in range(0, ROWS, BATCH):
        engine.backward((x[start : start + BATCH], y[start : start + BATCH]))
        if scaler is None:
            base.step()
        else:
            scaler.step(base)
            scaler.update()
        base.zero_grad()
    assert apart(model, twin) == 0


def test_a_batch_that_a_callback_cancels_is_no_step() -> None:
    class Skipping(Callback):
        def after_pred(self) -> None:
            if self.learn.training and self.learn.iter == 3:
                raise CancelBatchException

    model = net()
    assert fitted("sam", model, Skipping(), epochs=1).sharpness.engine.step == 7
    assert all(p.isfinite().all() for p in model.parameters())


def test_what_fails_inside_a_step_leaves_no_trace() -> None:
    class Failing(nn.Module):
        calls = 0

        def forward(self, out: Any, target: Any) -> Any:
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError("out of memory")
            return cross_entropy(out, target)

    model, twin = net(), net()
    learn = learner(model, Sharpness(METHODS["sam"]), loss=Failing())
    with pytest.raises(RuntimeError, match="out of memory"):
        learn.fit(1)
    assert apart(model, twin) == 0
    assert all(p.grad is None for p in model.parameters())
    assert "_backward" not in vars(learn)
    with learn.no_logging():
        learn.fit(1)
    by_hand("sam", twin, epochs=1)
    assert apart(model, twin) < BOUND


def test_a_callback_is_pickled_without_its_engine() -> None:
    sharpness = fitted("looksam", net(), epochs=1).sharpness
    again = pickle.loads(pickle.dumps(sharpness))
    assert again.engine is None
    assert again.method == METHODS["looksam"]


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="all that the Learner gives, but KSAM needs a loss for every example"):
        Sharpness(lowland.KSAM())
    with pytest.raises(ArgumentError, match="options must be some of micro_batch, rng"):
        Sharpness(lowland.SAM(), scaler=None)
    with pytest.raises(UsageError, match=r"fastai's Optimizer; write Learner\(…, opt_func=partial\(OptimWrapper"):
        fitted("sam", net(), opt=Adam)
    with pytest.raises(UsageError, match=r"must have one Sharpness, but has several.*lowland\.Switch"):
        fitted("sam", net(), Sharpness(METHODS["looksam"]))
    with pytest.raises(UsageError, match=r"without GradientAccumulation.*Sharpness\(method, micro_batch=…\)"):
        fitted("sam", net(), GradientAccumulation(16))
    for mixing in (MixUp, CutMix):
        with pytest.raises(UsageError, match=f"without {mixing.__name__} for SAMPa"):
            fitted("sampa", net(), mixing())
    with pytest.raises(UsageError, match=r"without MixUp for SAM, .*take SAM without micro_batch"):
        fitted("sam", net(), MixUp(), micro_batch=4)
    assert fitted("sam", net(), MixUp()).sharpness.engine.step == 16

    for name, remedy in REFUSED.items():
        stand_in = type(name, (Callback,), {})()
        with pytest.raises(UsageError, match=re.escape(f"must be without {name}, which {remedy}")):
            fitted("sam", net(), stand_in)
    model = net()
    closing = lowland.ClosureOptimizer(lowland.Engine(lowland.SAM(), model, torch.optim.SGD(model.parameters(), lr=LR)))
    with pytest.raises(UsageError, match="pass the SGD inside it"):
        fitted("sam", model, opt=lambda params, lr: OptimWrapper(opt=closing))
    weighted = CrossEntropyLossFlat(weight=torch.tensor([1.0, 5.0, 0.1]))
    with pytest.raises(LossError, match="must have a loss that is the mean over its examples"):
        fitted("msam", net(), loss=weighted)
