from __future__ import annotations

from typing import Any

import pytest
import torch

from lowland.core import schedule
from lowland.lab.names import make as task_of
from lowland.lab.tasks.defaults import TUNED
from lowland.lab.training.defaults import FITTED, Training, method_defaults
from lowland.methods import METHODS, make


def training(lr: float = 0.2) -> Training:
    return Training(steps_per_epoch=391, examples=50_000, lr=lr)


def filled(key: str, model: str = "resnet20") -> dict[str, Any]:
    """As a run on photographs fills it."""
    return {**task_of("cifar10").defaults(key, model), **method_defaults(key, training())}


def test_looksam_reuses_less_on_small_networks() -> None:
    for model in ("mlp", "resnet20", "torchvision:resnet18"):
        assert filled("looksam", model) == {"alpha": 0.2}
    assert filled("looksam", "timm:vit_tiny_patch16_224") == {}


@pytest.mark.parametrize("method", ["vsam", "arsam"])
def test_refreshes_begin_with_full_sam(method: str) -> None:
    assert method_defaults(method, training()) == {"warmup": 0.1}


def test_ausam_knows_the_training_set() -> None:
    found = method_defaults("ausam", training())
    assert found == {"examples": 50_000, "warmup": 391, "ramp": 0.3}
    assert make("ausam", fill=filled).ramp == 0.3


def test_xsam_searches_once_an_epoch() -> None:
    assert method_defaults("xsam", training()) == {"every": 391}
    assert make("xsam", fill=filled).every == 391
    assert make("xsam:every=7", fill=filled).every == 7


def test_lengths_are_fractions_of_the_training() -> None:
    assert method_defaults("ae-sam", training()) == {}
    assert method_defaults("late", training()) == {"start": 0.9}
    assert method_defaults("gsam", training(lr=0.4)) == {"rho": schedule.follow_lr(0.05, 0.0, lr_high=0.4)}


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(TUNED) - set(FITTED)))
def test_other_methods_are_as_published(method: str) -> None:
    assert filled(method) == {}


@pytest.mark.parametrize("model", ["mlp", "vit_b_16"])
def test_the_tables_name_fields_that_there_are(model: str) -> None:
    for method in METHODS:
        made = make(method, fill=lambda key: filled(key, model))
        made.init([torch.ones(2)])  # which refuses what only a training could say


def test_what_the_user_gives_stays_as_it_is() -> None:
    assert make("looksam:alpha=0.7", fill=filled).alpha == 0.7


@pytest.mark.parametrize("text", ["stable-sam:inner=looksam", "late:start=3,inner=looksam"])
def test_a_method_inside_another_is_filled_as_well(text: str) -> None:
    assert make(text, fill=filled).inner.alpha == 0.2
