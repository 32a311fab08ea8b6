"""trl's trainers and PEFT's adapters with a method: the weights, and what trl counts."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", exc_type=(ImportError, RuntimeError))
pytest.importorskip("peft", exc_type=(ImportError, RuntimeError))

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import lowland
from integrations import hf
from integrations.hf import by_hand, llama, texts, trained, twins
from integrations.methods import METHODS
from integrations.trajectories import Trajectory, apart, sgd
from lowland.core.errors import UsageError
from lowland.integrations import refusals
from lowland.integrations.transformers import sharpened

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "max_steps": hf.STEPS,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
}


class Collate:
    """Rows as they are; trl's own collator needs a tokenizer."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {key: torch.tensor([r[key] for r in rows]) for key in ("input_ids", "labels")}
        return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def tokenizer() -> Any:
    """A word for every number, as much of a tokenizer as trl asks for."""
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 40)}}
    bare = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", eos_token="<eos>")


def sft(kind: str | None, out: Path, model: Any, k: int, **more: Any) -> Any:
    rows = texts()
    data = Dataset.from_list([{key: r[key].tolist() for key in r} for r in (rows[i] for i in range(len(rows)))])
    of: Any = SFTTrainer if kind is None else sharpened(SFTTrainer)
    given: dict[str, Any] = {} if kind is None else {"sharpness": METHODS[kind]}
    trainer = of(
        model=model,
        args=SFTConfig(output_dir=str(out), gradient_accumulation_steps=k, **COMMON),
        train_dataset=data,
        processing_class=tokenizer(),
        data_collator=Collate(),
        optimizers=(sgd(model), None),
        **given,
        **more,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_sft_trainer_follows_the_trajectory_and_counts_once(tmp_path: Path, kind: str, k: int) -> None:
    model, twin = twins(llama)
    trainer = sft(kind, tmp_path / "a", model, k)
    by_hand(kind, twin, texts(), k)
    assert apart(model, twin) < 1e-6
    plain = sft(None, tmp_path / "b", llama(), k)
    mine, theirs = (t.state.log_history[hf.STEPS - 1]["num_tokens"] for t in (trainer, plain))
    assert mine == theirs
    # In the first step SAM reports at the weights, where plain training is.
    mine, theirs = (t.state.log_history[0]["mean_token_accuracy"] for t in (trainer, plain))
    assert mine == theirs


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_adapters_are_what_is_perturbed(tmp_path: Path, kind: str) -> None:
    """fp32 adapters on a bf16 base, PEFT's default: base and head stay bit for bit, adapters follow by hand in fp32."""

    def make() -> Any:
        torch.manual_seed(0)
        model = get_peft_model(
            llama().to(torch.float32), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        )
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        return model

    model = make()
    base = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    twin = copy.deepcopy(model)
    trainer = trained(kind, tmp_path, model, texts(), 2)
    assert all(torch.equal(p, base[n]) for n, p in model.named_parameters() if n in base)
    assert all("lora" in name for name in trainer.engine.names)
    inner = twin.base_model.model
    by_hand(kind, inner, texts(), 2, dtype=torch.float32, optimizer=lambda _: sgd(twin))
    assert apart(model, twin) < 1e-6
    assert max(float((p - q).abs().max()) for p, q in zip(make().parameters(), model.parameters(), strict=True)) > 1e-4


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam"])
def test_adapters_in_bf16(tmp_path: Path, kind: str) -> None:
    """As after ``model.to(torch.bfloat16)``: the base stays, the adapters move, and vectors are fp32."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(llama().to(torch.bfloat16), config, autocast_adapter_dtype=False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = trained(kind, tmp_path, model, texts(), 2)
    assert trainer.engine.step == hf.STEPS
    for n, p in model.named_parameters():
        assert p.dtype == torch.bfloat16
        assert bool(p.isfinite().all())
        assert p.requires_grad != torch.equal(p, before[n]), n
    vectors = [t for k in trainer.engine.vector_keys for t in trainer.engine.memory[k]]
    assert {t.dtype for t in vectors} <= {torch.float32}


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam"])
def test_fp32_adapters_on_a_bf16_base_follow_the_trajectory(tmp_path: Path, kind: str) -> None:
    def make() -> Any:
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        return get_peft_model(llama().to(torch.bfloat16), config)

    model, twin, rows = make(), make(), texts()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    trained(kind, tmp_path, model, rows, 2)
    base = sgd(twin)

    def loss(m: Any, step: Any) -> Any:
        pieces, items = step
        return sum((m(**b, num_items_in_batch=items).loss for b in pieces), torch.zeros(()))

    hand = Trajectory(kind, twin, base, loss)
    for t in range(hf.STEPS):
        pieces = [each[0] for each in hf.micro_batches(rows, 2 * hf.STEPS)[2 * t : 2 * t + 2]]
        base.zero_grad()
        hand.backward((pieces, sum(int((b["labels"][:, 1:] != -100).sum()) for b in pieces)))
        base.step()
    assert apart(model, twin) < 1e-6
    assert apart(model, make()) > 1e-4


def test_gradient_checkpointing(tmp_path: Path) -> None:
    model, twin = twins(llama)
    trained("sam", tmp_path, model, texts(), 2, gradient_checkpointing=True)
    by_hand("sam", twin, texts(), 2)
    assert apart(model, twin) < 1e-6


def dpo(method: Any, out: Path, model: Any, k: int) -> Any:
    g = torch.Generator().manual_seed(3)

    def words(n: int) -> str:
        return " ".join(f"w{int(i)}" for i in torch.randint(2, 40, (n,), generator=g))

    rows = [{"prompt": words(3), "chosen": words(4), "rejected": words(4)} for _ in range(64)]
    trainer = sharpened(DPOTrainer)(
        model=model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(output_dir=str(out), gradient_accumulation_steps=k, **COMMON),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        optimizers=(sgd(model), None),
        sharpness=method,
    )
    trainer.train()
    return trainer


def test_dpo_s_pairs_are_never_cut(tmp_path: Path) -> None:
    """With its rows [chosen; rejected] cut in two, MicroSAM was 0.39 away without a word."""
    with pytest.raises(UsageError, match="where DPOTrainer computes the loss"):
        dpo(lowland.MicroSAM(m=2), tmp_path / "a", llama(), 1)
    model, twin = twins(llama)
    assert dpo(lowland.MicroSAM(rho=0.05, m=1), tmp_path / "b", model, 2).engine.step == hf.STEPS
    dpo(lowland.SAM(rho=0.05), tmp_path / "c", twin, 2)
    assert apart(model, twin) < 1e-6
    assert dpo(lowland.MicroSAM(rho=0.05, m=2), tmp_path / "d", llama(), 2).engine.step == hf.STEPS


@pytest.mark.parametrize(
    ("module", "kind", "function"),
    [
        ("trl", "GRPOTrainer", "GRPOTrainer._prepare_inputs"),
        ("trl.experimental.gkd", "GKDTrainer", "GKDTrainer.training_step"),
        ("trl.experimental.online_dpo", "OnlineDPOTrainer", "OnlineDPOTrainer.training_step"),
        *(("trl", kind, None) for kind in ("SFTTrainer", "DPOTrainer", "KTOTrainer", "RewardTrainer")),
    ],
)
def test_which_trainers_generate_examples_in_a_step(module: str, kind: str, function: str | None) -> None:
    found = getattr(importlib.import_module(module), kind)
    assert refusals.generating(sharpened(found), Trainer) == function
