"""Small models, data and arguments for transformers' Trainer, and the same training written by hand."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from integrations.methods import METHODS
from integrations.trajectories import CUTS, Trajectory, sgd
from lowland.integrations.transformers import SharpnessTrainer

STEPS, ROWS = 6, 4
Batch = dict[str, Tensor]


class Rows(Dataset[Batch]):
    def __init__(self, rows: list[Batch]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Batch:
        return self.rows[i]


def classes(count: int = 128) -> Rows:
    g = torch.Generator().manual_seed(1)
    return Rows(
        [
            {"input_ids": torch.randint(1, 40, (6,), generator=g), "labels": torch.randint(0, 3, (), generator=g)}
            for _ in range(count)
        ]
    )


class Stream(IterableDataset[Batch]):
    """Rows whose number the Trainer does not know, so that an epoch may end in the middle of a step."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.rows.rows)


def texts(count: int = 128) -> Rows:
    """Token rows whose labels are ragged, so that a mean of means is another number than a mean over tokens."""
    g = torch.Generator().manual_seed(2)
    rows = []
    for _ in range(count):
        ids = torch.randint(1, 40, (8,), generator=g)
        labels = ids.clone()
        labels[: int(torch.randint(1, 7, (), generator=g))] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return Rows(rows)


class Tiny(nn.Module):
    """A model whose forward takes no further arguments, so that the Trainer divides its loss by the accumulation."""

    def __init__(self, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden, self.out = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.dropout = nn.Dropout(dropout)
        self.to(dtype)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.out(self.dropout(torch.tanh(self.hidden(self.embed(input_ids).mean(1)))))
        loss = None if labels is None else cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        attn_implementation="eager",
        use_cache=False,
    )
    return LlamaForCausalLM(config).double()  # type: ignore[no-any-return, attr-defined]


def arguments(out: Path | str, k: int = 1, **more: Any) -> TrainingArguments:
    given = {
        "output_dir": str(out),
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": k,
        "max_steps": STEPS,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "learning_rate": 0.05,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_drop_last": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "seed": 3,
    }
    return TrainingArguments(**{**given, **more})


def trained(
    kind: str | None,
    out: Path | str,
    model: nn.Module,
    data: Any,
    k: int = 1,
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    of: Any = SharpnessTrainer,
    resume: str | bool | None = None,
    mixin: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """A Trainer that has trained the model; without a method, transformers' own."""
    options: dict[str, Any] = {} if kind is None else {"sharpness": METHODS.get(kind, kind), **(mixin or {})}
    made = Trainer if kind is None else of
    trainer = made(
        model=model,
        args=arguments(out, k, **more),
        train_dataset=data,
        optimizers=(optimizer(model), None),
        **options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def micro_batches(data: Rows, count: int, rows: int = ROWS, ranks: int = 1) -> list[list[Batch]]:
    """For every micro-batch, that of each rank: accelerate gives batch after batch to rank after rank."""
    made = []
    for i in range(count):
        mine = []
        for r in range(ranks):
            at = [((i * ranks + r) * rows + j) % len(data) for j in range(rows)]
            mine.append({key: torch.stack([data[a][key] for a in at]) for key in data[0]})
        made.append(mine)
    return made


def by_hand(
    kind: str,
    model: nn.Module,
    data: Rows,
    k: int = 1,
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    steps: int = STEPS,
    clip: float = 0.0,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    ranks: int = 1,
    together: bool = False,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """The training by hand: one step of the method on all micro-batches and ranks; returns the losses.

    mSAM cuts the rows of every rank, or of all ranks `together`.
    """
    base = optimizer(model)

    def one(model: nn.Module, batch: Batch, items: int | None) -> Tensor:
        logits = model(input_ids=batch["input_ids"]).logits
        if items is None:
            return cross_entropy(logits, batch["labels"])
        flat, labels = logits[:, :-1].reshape(-1, 40), batch["labels"][:, 1:].reshape(-1)
        return cross_entropy(flat, labels, ignore_index=-100, reduction="sum") / items

    def loss(model: nn.Module, step: Any) -> Tensor:
        pieces, items = step  # each piece with its weight
        return sum((w * one(model, b, items) for b, w in pieces), torch.zeros((), dtype=dtype))

    def cut(step: Any) -> list[tuple[Any, float]]:
        """For every rank, its rows cut into runs of equal length; a mean weighs by examples, a sum does not."""
        pieces, items = step
        runs = []
        for mine in (pieces[r::ranks] for r in range(ranks)):
            whole = {key: torch.cat([b[key] for b, _ in mine]) for key in mine[0][0]}
            for run in zip(*(torch.tensor_split(v, CUTS) for v in whole.values()), strict=True):
                piece = dict(zip(whole, run, strict=True))
                weight = 1.0 if items is None else CUTS * ranks  # the piece's mean is that of as many
                runs.append((([(piece, weight)], items), 1 / (CUTS * ranks)))
        if together:
            groups = [[pieces[0] for (pieces, _), _ in runs[j::CUTS]] for j in range(CUTS)]
            runs = [(([(p, w / ranks) for p, w in group], items), 1 / CUTS) for group in groups]
        return runs

    at_work = Trajectory(kind, model, base, loss, cut)
    model.train()
    sent = micro_batches(data, steps * k, ranks=ranks)
    follow = None if schedule is None else schedule(base)
    losses = []
    for t in range(steps):
        mine = [b for each in sent[t * k : (t + 1) * k] for b in each]
        items = None
        if isinstance(model, LlamaForCausalLM):
            items = sum(int((b["labels"][:, 1:] != -100).sum()) for b in mine)
        weight = 1 / len(mine) if items is None else 1.0
        base.zero_grad()
        losses.append(at_work.backward(([(b, weight) for b in mine], items)))
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        base.step()
        if follow is not None:
            follow.step()
    return losses


def twins(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    model = make()
    return model, copy.deepcopy(model)
