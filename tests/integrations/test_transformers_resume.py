"""transformers' Trainer with a method: resume, second trainings, failures inside a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

import torch
from transformers import Trainer

import lowland
from integrations import hf
from integrations.hf import Tiny, by_hand, classes, llama, texts, trained, twins
from integrations.methods import METHODS
from integrations.trajectories import apart, sgd
from lowland.core.errors import StateError, UsageError
from lowland.integrations.transformers import SharpnessTrainer

CLASSES = classes()
KEEPING = ["sampa", "looksam"]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_a_resume_goes_on_bit_for_bit(tmp_path: Path, kind: str, dropout: float) -> None:
    """S9: 0.11 to 0.19 apart without the engine's state. LookSAM stops between two SAM steps."""
    more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    torch.manual_seed(7)
    whole, part = twins(lambda: Tiny(dropout))
    trained(kind, tmp_path / "whole", whole, CLASSES, 2, **more)
    trained(kind, tmp_path / "part", part, CLASSES, 2, **more)
    resumed = Tiny(dropout)
    with torch.no_grad():
        for p in resumed.parameters():
            p.zero_()
    trainer = trained(kind, tmp_path / "part", resumed, CLASSES, 2, resume=str(tmp_path / "part/checkpoint-3"), **more)
    assert apart(whole, resumed) == 0
    assert trainer.engine.step == hf.STEPS


def test_a_token_loss_resumes_with_the_normalizer_of_the_batch_that_is_held(tmp_path: Path) -> None:
    more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole, resumed = twins(llama)
    trained("sampa", tmp_path, whole, texts(), 2, **more)
    trained("sampa", tmp_path, resumed, texts(), 2, resume=str(tmp_path / "checkpoint-3"), **more)
    assert apart(whole, resumed) == 0


@pytest.mark.parametrize("kind", KEEPING)
def test_a_checkpoint_of_plain_training_is_refused(tmp_path: Path, kind: str) -> None:
    more: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    trained(None, tmp_path, Tiny(), CLASSES, **more)
    start = str(tmp_path / "checkpoint-3")
    with pytest.raises(StateError, match=r"SharpnessTrainer\(…, sharpness_resume=\"cold\"\)"):
        trained(kind, tmp_path, Tiny(), CLASSES, resume=start, **more)
    trainer = trained(kind, tmp_path, Tiny(), CLASSES, resume=start, mixin={"sharpness_resume": "cold"}, **more)
    assert trainer.engine.step == 3
    # SAM keeps nothing, so that nothing is missing.
    assert trained("sam", tmp_path, Tiny(), CLASSES, resume=start, **more).engine.step == 3
    growing = lowland.SAM(rho=lowland.schedule.linear(0.0, 0.1))  # goes by the Trainer's progress
    assert trained(growing, tmp_path, Tiny(), CLASSES, resume=start, **more).engine.progress == 5 / 6
    growing = lowland.SAM(rho=lowland.schedule.linear(0.0, 0.1, steps=4))
    with pytest.raises(StateError, match="keeps something from step to step"):
        trained(growing, tmp_path, Tiny(), CLASSES, resume=start, **more)


def test_another_model_gets_an_engine_of_its_own(tmp_path: Path) -> None:
    """S12: an engine that is kept would train the model of the first training."""
    trainer = SharpnessTrainer(
        model_init=lambda: Tiny(),
        args=hf.arguments(tmp_path, 2, optim="sgd", optim_args="momentum=0.9"),
        train_dataset=CLASSES,
        sharpness=METHODS["looksam"],
    )
    trainer.train()
    first, engine = trainer.model, trainer.engine
    trainer.train()
    assert trainer.model is not first
    assert trainer.engine is not engine
    assert apart(first, trainer.model) == 0
    assert apart(first, Tiny()) > 0.01


def test_what_fails_inside_a_step_leaves_no_trace(tmp_path: Path) -> None:
    """The second pass of step 2 fails at its second micro-batch; then the same trainer trains again, by hand's rule."""

    class Failing(SharpnessTrainer):
        calls, fails = 0, True

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.fails and self.calls == 8 + 4:
                raise RuntimeError("out of memory")
            return super().compute_loss(*args, **kwargs)

    model, twin = twins(Tiny)
    trainer = Failing(
        model=model,
        args=hf.arguments(tmp_path, 2),
        train_dataset=CLASSES,
        optimizers=(sgd(model, lr=0.0), None),
        sharpness=METHODS["sam"],
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert apart(model, twin) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert "backward" not in vars(trainer.accelerator)
    trainer.fails = False
    trainer.optimizer = trainer.callback_handler.optimizer = sgd(model)
    trainer.train()
    by_hand("sam", twin, CLASSES, 2)
    assert apart(model, twin) < 1e-10


def test_micro_batches_that_were_held_do_not_enter_the_next_training(tmp_path: Path) -> None:
    class Interrupted(SharpnessTrainer):
        steps, stop = 0, True

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            if self.stop and self.steps == 4:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    model, twin = twins(Tiny)
    trainer = Interrupted(
        model=model,
        args=hf.arguments(tmp_path, 4),
        train_dataset=CLASSES,
        optimizers=(sgd(model), None),
        sharpness=METHODS["sam"],
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.stop = False
    trainer.train()
    by_hand("sam", twin, CLASSES, 4)
    assert apart(model, twin) < 1e-10


def test_a_closure_optimizer_is_refused_with_and_without_the_mixin(tmp_path: Path) -> None:
    """S1: without its closure it would train plainly."""
    model = Tiny()
    closing = lowland.ClosureOptimizer(lowland.Engine(lowland.SAM(), model, sgd(model)))
    given: dict[str, Any] = {"args": hf.arguments(tmp_path), "train_dataset": CLASSES, "optimizers": (closing, None)}
    with pytest.raises(UsageError, match=r"step needs the closure.*would train without the method"):
        Trainer(model=model, **given).train()
    with pytest.raises(UsageError, match="pass the SGD inside it"):
        SharpnessTrainer(model=model, sharpness=lowland.SAM(), **given)


def test_a_scaler_changes_nothing_and_skips_what_overflows(tmp_path: Path) -> None:
    class Overflowing(SharpnessTrainer):
        at = -1

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return loss * float("inf") if self.state.global_step == self.at else loss

        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            if self.scaled:
                self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)

    models = []
    for scaled in (False, True):
        Overflowing.scaled = scaled  # type: ignore[attr-defined]
        models.append(Tiny(dtype=torch.float32))
        trained("looksam", tmp_path, models[-1], CLASSES, 2, of=Overflowing)
    assert apart(*models) == 0  # the scale is a power of two
    Overflowing.at = 3
    trainer = trained("looksam", tmp_path, Tiny(dtype=torch.float32), CLASSES, 2, of=Overflowing)
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert all(v.isfinite().all() for v in trainer.engine.memory["g_v"])
    assert trainer.accelerator.scaler.get_scale() == 512.0
