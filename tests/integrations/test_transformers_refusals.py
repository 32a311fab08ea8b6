"""transformers' Trainer with a method: every set-up, argument and loss that it refuses, each with its remedy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

import torch
from transformers import Trainer

import lowland
from integrations import hf
from integrations.hf import Tiny, by_hand, classes, llama, texts, trained, twins
from integrations.trajectories import apart
from lowland.core.errors import ArgumentError, LossError, UsageError
from lowland.integrations import refusals
from lowland.integrations.transformers import SharpnessMixin, SharpnessTrainer, check_trainer, sharpened

CLASSES = classes()


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
        ({"optim": "galore_adamw_layerwise"}, "NO", "but galore_adamw_layerwise steps inside it"),
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


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_model_parallel_set_ups_are_refused(kind: str) -> None:
    config = SimpleNamespace(**{f"{kind}_enabled": True, f"{kind}_size": 2})
    accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name="NO"), parallelism_config=config)
    with pytest.raises(UsageError, match=f"{kind}_size is 2; leave it at 1"):
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


class Weighted(Tiny):
    """Class weights: the mean over a part weighs more than its number of examples."""

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        logits = self.out(torch.tanh(self.hidden(self.embed(input_ids).mean(1))))
        weight = torch.tensor([1.0, 5.0, 0.1], dtype=logits.dtype)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels, weight=weight)}


class Contrasting(Tiny):
    """A sum divided by the step's items, in which every example is compared with all others of its batch."""

    def forward(self, input_ids: Any, labels: Any = None, num_items_in_batch: Any = 1, **_: Any) -> Any:
        vectors = self.hidden(self.embed(input_ids).mean(1))
        own = torch.arange(len(vectors))
        summed = torch.nn.functional.cross_entropy(vectors @ vectors.T, own, reduction="sum")
        return {"loss": summed / num_items_in_batch + 0 * self.out(vectors).sum()}


@pytest.mark.parametrize("make", [Weighted, Contrasting])
def test_a_cut_through_a_loss_whose_parts_do_not_add_up_is_refused(tmp_path: Path, make: Any) -> None:
    """S5: such a cut gave another gradient without a word."""
    with pytest.raises(LossError, match=r"and over its two halves .*m=gradient_accumulation_steps"):
        trained("msam", tmp_path, make(), CLASSES)
    assert trained("msam", tmp_path, make(), CLASSES, 2).engine.step == hf.STEPS  # cuts between micro-batches
    assert trained("sam", tmp_path, make(), CLASSES).engine.step == hf.STEPS


def test_a_cut_through_examples_that_the_loss_leaves_out_is_refused(tmp_path: Path) -> None:
    rows = classes()
    rows.rows[13]["labels"] = torch.tensor(-100)  # in step 3, which is not compared
    with pytest.raises(LossError, match="the label -100 leaves examples out; let the method cut between"):
        trained("msam", tmp_path, Tiny(), rows)
    assert trained("sam", tmp_path, Tiny(), rows).engine.step == hf.STEPS


def test_models_that_were_sharded_when_they_were_loaded_are_refused(tmp_path: Path) -> None:
    for name, value in (("is_distributed_loading_by_transformers", True), ("_tp_size", 2)):
        model = Tiny()
        setattr(model, name, value)
        accelerator = SimpleNamespace(distributed_type=SimpleNamespace(name="MULTI_CPU"))
        args = SimpleNamespace(n_gpu=0, optim="adamw_torch")
        with pytest.raises(UsageError, match=r"shard it by TrainingArguments\(fsdp=True\)"):
            check_trainer(SimpleNamespace(args=args, accelerator=accelerator, optimizer=None, model=model))


def test_trainers_that_generate_examples_are_refused(tmp_path: Path) -> None:
    """As GKDTrainer and OnlineDPOTrainer do in training_step: the second pass would see what displaced weights make."""

    class Generating(SharpnessTrainer):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            inputs["input_ids"] = model.generate(inputs["input_ids"])
            return super().training_step(model, inputs, num_items_in_batch)

    with pytest.raises(UsageError, match=r"but Generating\.training_step makes some; every pass of a step would see"):
        made(tmp_path, Generating, sharpness=lowland.SAM())

    class Hidden(SharpnessTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            model.generate(inputs["input_ids"], max_new_tokens=2, do_sample=True)
            return super().compute_loss(model, inputs, *args, **kwargs)

    model = llama()
    with pytest.raises(UsageError, match="but calls generate; every pass of a step would see others"):
        trained("sam", tmp_path, model, texts(), of=Hidden)
    assert "generate" not in vars(model)


def test_trainers_that_do_otherwise_than_the_trainer(tmp_path: Path) -> None:
    class Generating(SharpnessTrainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return super()._prepare_inputs(inputs)

    with pytest.raises(UsageError, match=r"Generating\._prepare_inputs makes some; .* prepare them in the data set"):
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
