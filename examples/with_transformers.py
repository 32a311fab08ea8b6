"""Hugging Face's Trainer with SAM: `python examples/with_transformers.py`.

The model learns which of two words comes more often in a sentence. SharpnessTrainer is transformers' Trainer with
one more argument.
"""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import lowland
from lowland.integrations.transformers import SharpnessTrainer


def sentences(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Sentences of 15 words; the label says whether word 1 comes more often than word 2."""
    words = torch.randint(1, 4, (count, 15), generator=torch.Generator().manual_seed(seed))
    labels = ((words == 1).sum(1) > (words == 2).sum(1)).long()
    return [{"input_ids": w, "labels": label} for w, label in zip(words, labels, strict=True)]


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main(epochs: int = 4) -> float:
    """Train and return the test accuracy."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=2,  # both micro-batches of a step share one perturbation
            learning_rate=5e-3,
            report_to="none",
            save_strategy="no",
        )
        trainer = SharpnessTrainer(
            model=BertForSequenceClassification(config),
            args=args,
            train_dataset=sentences(1024, seed=1),
            eval_dataset=sentences(256, seed=2),
            compute_metrics=accuracy,
            sharpness=lowland.SAM(rho=0.05),
        )
        trainer.train()
        found = float(trainer.evaluate()["eval_accuracy"])
    print(f"SAM, {trainer.engine.step} steps, test accuracy {found:.3f}")
    return found


if __name__ == "__main__":
    main()
