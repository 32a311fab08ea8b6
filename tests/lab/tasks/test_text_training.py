"""Trainings of the text tasks: by several methods, resumed in the middle, on two ranks, in micro-batches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_texts import config, trained
from ranks import on_ranks
from safetensors.torch import load_file

from lowland.lab import names
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.training.run import train

METHODS = ("plain", "sam", "sampa", "looksam:k=2", "micro-sam:m=2")
FIELDS = {"chars": "context=16"}


@pytest.mark.parametrize("name", ["sst2", "trec", "cola", "mrpc", "rte", "chars"])
@pytest.mark.parametrize("method", METHODS)
def test_every_task_trains_with_every_method(text_files: Path, tmp_path: Path, name: str, method: str) -> None:
    task = names.make(f"{name}:{FIELDS.get(name, 'vocab=300,length=40')}")
    recipe = task.recipe(task.models[0]).replace(batch_size=8)
    run = RunConfig(
        task=task, model=task.models[0], method=method, seed=0, recipe=recipe, data=str(text_files), device="cpu",
        budget=Budget(kind="steps", limit=3),
    )  # fmt: skip
    end = train(run, tmp_path / "run")
    assert end["step"] == 3
    assert math.isfinite(end["test"]["loss"])
    assert set(end["test"]) == {"loss", *(metric.name for metric in task.metrics)}


@pytest.mark.slow
def test_classes_are_learned(tmp_path: Path) -> None:
    """One word decides the class."""
    made = config("pairs", "plain", 0.1, budget=Budget(limit=120))
    end = train(replace(made, recipe=made.recipe.replace(epochs=20, lr=3e-3)), tmp_path / "run")
    assert end["test"]["accuracy"] == 1.0


@pytest.mark.slow
def test_words_are_learned(tmp_path: Path) -> None:
    made = config("play", "plain", 0.0, budget=Budget(limit=120))
    end = train(replace(made, recipe=made.recipe.replace(epochs=20, lr=1e-2)), tmp_path / "run")
    assert end["test"]["bits_per_character"] < 2.0  # a random word of twelve has 3.6 bits and 5 characters
    assert end["test"]["loss"] == pytest.approx(end["test"]["bits_per_character"] * math.log(2), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sampa", "looksam:k=3", "micro-sam:m=2", "ausam:warmup=2,ramp=6"])
@pytest.mark.parametrize("kind", ["pairs", "play"])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, kill: Any, kind: str, method: str) -> None:
    made = config(kind, method, 0.1, checkpoint_every=4)
    whole = train(made, tmp_path / "whole")
    with kill(4):
        train(made, tmp_path / "killed")
    forget()
    again = train(made, tmp_path / "killed", resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["test"] == whole["test"]


def forget() -> None:
    """Forget data and tokenizer, as a new process does."""
    from lowland.lab.data import tokens
    from lowland.lab.training import prepare

    tokens.trained.cache_clear()
    prepare._cached_parts.clear()
    prepare._cached_loader.clear()


@pytest.mark.parametrize("kind", ["pairs", "play"])
def test_micro_batches_take_the_step_of_the_batch(tmp_path: Path, kind: str) -> None:
    made = config(kind, "sam", 0.0)
    train(made, tmp_path / "one")
    train(replace(made, recipe=made.recipe.replace(accumulate=3)), tmp_path / "three")
    assert_near(tmp_path / "three", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "method", "mesh"), [
    ("pairs", "sam", {"mesh": "data=2"}),
    ("pairs", "sampa", {"mesh": "probe=2"}),
    ("pairs", "looksam:k=3", {"mesh": "data=2", "shard": True}),
    ("play", "sampa", {"mesh": "data=2"}),
    ("play", "micro-sam:m=2", {"mesh": "probe=2"}),
])  # fmt: skip
def test_two_ranks_train_as_one_process_does(tmp_path: Path, kind: str, method: str, mesh: dict[str, Any]) -> None:
    alone = trained(tmp_path / "alone", kind, method, {})
    ends = on_ranks(2, trained, tmp_path / "ranks", kind, method, mesh)
    assert ends[0]["weights_sha256"] == ends[1]["weights_sha256"]
    assert ends[0]["test"] == pytest.approx(alone["test"], rel=1e-4)
    assert_near(tmp_path / "ranks", tmp_path / "alone")


def assert_near(folder: Path, other: Path) -> None:
    """The weights after the last step are equal but for rounding, which AdamW enlarges where gradients are small."""
    found, expected = (load_file(f / "checkpoints" / "step-000000012" / "weights.safetensors") for f in (folder, other))
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
