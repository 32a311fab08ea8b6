"""transformers' Trainer with a method: resume, second trainings, failures inside a step, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("accelerate", exc_type=ImportError)

import torch
from transformers import Trainer

import lowland
from integrations import hf
from integrations.hf import Tiny, by_hand, classes, llama, texts, trained, twins
from integrations.methods import METHODS
from integrations.trajectories import apart, sgd
from lowland.core.errors import ArgumentError, LossError, StateError, UsageError
from lowland.integrations import refusals
from lowland.integrations.transformers import SharpnessMixin, SharpnessTrainer, check_trainer, sharpened

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


def made(tmp_path: Path, of: Any = SharpnessTrainer, **more: Any) -> Any:
    return of(**{"model": Tiny(), "args": hf.arguments(tmp_path), "train_dataset": CLASSES, **more})


@pytest.mark.parametrize(
    "method", [lowland.AUSAM(), lowland.KSAM(), lowland.ESAM(), lowland.BiSAM(), lowland.Late(inner=lowland.ESAM())]
)
def test_methods_that_need_losses_by_example_are_refused(tmp_path: Path, method: lowland.Method) -> None:
    with pytest.raises(ArgumentError, match=r"needs a loss for every example; take another method, such as SAM"):
        made(tmp_path, sharpness=method)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sharpness": lowland.SAM}, "but is the class; pass a value"),
        ({"sharpness_options": {"micro_batch": 2}}, "per_device_train_batch_size and gradient_accumulation_steps"),
        ({"sharpness_resume": "warm"}, "sharpness_resume must be"),
    ],
)
def test_arguments_that_break_their_rule(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        made(tmp_path, **{"sharpness": lowland.SAM(), **given})


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        ({"n_gpu": 2}, "NO", "start one process for each with torchrun"),
        ({"optim": "lomo"}, "NO", 'such as optim="adafactor"'),
        ({}, "DEEPSPEED", "DEEPSPEED keeps them elsewhere; train with DistributedDataParallel"),
        ({}, "MEGATRON_LM", "MEGATRON_LM keeps them elsewhere"),
        ({}, "XLA", "XLA keeps them elsewhere"),
        ({}, "FSDP", "set fsdp_version: 2"),
    ],
)
def test_set_ups_whose_gradients_are_elsewhere(args: dict[str, Any], kind: str, message: str) -> None:
    accelerator = SimpleNamespace(
        distributed_type=SimpleNamespace(name=kind), state=SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    )
    given = SimpleNamespace(**{"n_gpu": 0, "optim": "adamw_torch", **args})
    with pytest.raises(UsageError, match=message):
        check_trainer(SimpleNamespace(args=given, accelerator=accelerator, optimizer=None))


def test_model_parallel_set_ups_are_refused() -> None:
    config = SimpleNamespace(tp_enabled=True, tp_size=2)
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name="NO"), parallelism_config=config)
    with pytest.raises(UsageError, match="tp_size is 2; leave it at 1"):
        refusals.check_accelerator(accelerator)


def test_a_cut_through_rows_that_may_belong_together_is_refused(tmp_path: Path) -> None:
    """DPOTrainer's rows are chosen and rejected answers; a trainer with a loss of its own may have such pairs, too."""

    class Pairs(SharpnessTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs)

    with pytest.raises(UsageError, match=r"where Pairs computes the loss.*m=gradient_accumulation_steps"):
        trained("msam", tmp_path, Tiny(), CLASSES, of=Pairs)
    model, twin = twins(Tiny)
    trained("msam", tmp_path, model, CLASSES, 2, of=Pairs)  # cuts between micro-batches
    by_hand("msam", twin, CLASSES, 2)
    assert apart(model, twin) < 1e-10


def test_a_cut_through_a_mean_of_unknown_weight_is_refused(tmp_path: Path) -> None:
    class Tokens(Tiny):
        def forward(self, input_ids: Any, labels: Any = None) -> Any:
            logits = self.out(torch.tanh(self.hidden(self.embed(input_ids))))
            return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten() % 3)}

    with pytest.raises(LossError, match=r"mean over what only the loss function knows.*a divisor of it"):
        trained("msam", tmp_path, Tokens(), texts())

    class Mixed(Tiny):
        def forward(self, input_ids: Any, labels: Any = None, num_items_in_batch: Any = 1, **_: Any) -> Any:
            logits = self.out(torch.tanh(self.hidden(self.embed(input_ids).mean(1))))
            summed = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            return {"loss": summed / num_items_in_batch + logits.square().mean()}

    with pytest.raises(LossError, match="but this one is a mixture"):
        trained("msam", tmp_path, Mixed(), CLASSES)


def test_trainers_that_do_otherwise_than_the_trainer(tmp_path: Path) -> None:
    class Generating(SharpnessTrainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return super()._prepare_inputs(inputs)

    with pytest.raises(UsageError, match="prepare them in the data set or the collator"):
        made(tmp_path, Generating, sharpness=lowland.SAM())

    class Twice(Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            self.accelerator.backward(self.compute_loss(model, inputs))
            return super().training_step(model, inputs, num_items_in_batch)

    with pytest.raises(UsageError, match="add the losses up and call it once"):
        made(tmp_path, sharpened(Twice), sharpness=lowland.SAM()).train()

    class Bare(Trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = self.compute_loss(model, inputs)
            loss.backward()
            return loss.detach()

    with pytest.raises(UsageError, match=r"write self\.accelerator\.backward\(loss\)"):
        made(tmp_path, sharpened(Bare), sharpness=lowland.SAM()).train()
    with pytest.raises(ArgumentError, match="pass the class itself"):
        sharpened(Tiny)
    with pytest.raises(ArgumentError, match="has SharpnessMixin already"):
        sharpened(SharpnessTrainer)
    assert issubclass(sharpened(Twice), SharpnessMixin)


def test_without_transformers_the_error_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['transformers'] = None\n"
        "from lowland.core.errors import MissingExtraError\n"
        "try:\n    import lowland.integrations.transformers\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "transformers is not installed; run: pip install 'lowland[transformers]'"
