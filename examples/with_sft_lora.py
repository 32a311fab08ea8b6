"""trl's SFTTrainer, LoRA and LookSAM: `python examples/with_sft_lora.py`.

Only the adapters are trained and perturbed. The base model is random, so the loss falls, but not to zero.
"""

from __future__ import annotations

import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import lowland
from lowland.integrations.transformers import sharpened

WORDS = ["<pad>", "<eos>", *(str(n) for n in range(30))]


def tokenizer() -> PreTrainedTokenizerFast:
    bare = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", eos_token="<eos>")


def main(steps: int = 60) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=16, **shape))
    counting = [{"text": " ".join(str(n) for n in range(first, first + 8))} for first in range(22)] * 12
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            bf16=False,
            report_to="none",
            save_strategy="no",
        )
        trainer = sharpened(SFTTrainer)(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(counting),
            processing_class=tokenizer(),
            peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
            sharpness=lowland.LookSAM(rho=0.05, k=5),
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    trained = sum(p.numel() for p in trainer.engine.params)
    print(f"LookSAM, {trained} numbers in the adapters, loss {losses[0]} -> {losses[-1]}")


if __name__ == "__main__":
    main()
