from __future__ import annotations

import pytest
import torch

from lowland.core import schedule
from lowland.lab.training.defaults import FITTED, TUNED, Training, method_defaults
from lowland.methods import METHODS, make

COUNTED = ("warmup", "ramp", "total", "examples")  # fields in steps or examples


def training(epochs: float, model: str = "resnet20", lr: float = 0.2) -> Training:
    return Training(model=model, steps=round(391 * epochs), steps_per_epoch=391, examples=50_000, lr=lr)


def test_looksam_reuses_less_on_small_networks() -> None:
    for model in ("mlp", "resnet20", "torchvision:resnet18"):
        assert method_defaults("looksam", training(40, model)) == {"alpha": 0.2}
    assert method_defaults("looksam", training(30, "timm:vit_tiny_patch16_224")) == {}


@pytest.mark.parametrize("method", ["vsam", "arsam"])
@pytest.mark.parametrize(("epochs", "warmup"), [(200, 3), (30, 3), (20, 3), (19, 1.9), (8, 0.8)])
def test_refreshes_begin_with_full_sam(method: str, epochs: float, warmup: float) -> None:
    assert method_defaults(method, training(epochs)) == {"warmup": round(warmup * 391)}


@pytest.mark.parametrize(("epochs", "ramp"), [(200, 30), (100, 30), (50, 15), (10, 3)])
def test_ausam_knows_the_training_set(epochs: int, ramp: int) -> None:
    found = method_defaults("ausam", training(epochs))
    assert found == {"examples": 50_000, "warmup": 391, "ramp": 391 * ramp}
    assert make("ausam", fill=lambda key: method_defaults(key, training(epochs))).ramp == 391 * ramp


def test_what_a_whole_training_is_needed_for() -> None:
    assert method_defaults("ae-sam", training(10)) == {"total": 3910}
    assert method_defaults("late", training(10)) == {"start": 0.9, "total": 3910}
    assert method_defaults("gsam", training(10, lr=0.4)) == {"rho": schedule.follow_lr(0.05, 0.0, lr_high=0.4)}


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(TUNED) - set(FITTED)))
def test_other_methods_are_as_published(method: str) -> None:
    assert method_defaults(method, training(30)) == {}


@pytest.mark.parametrize("model", ["mlp", "vit_b_16"])
def test_the_tables_name_fields_that_there_are(model: str) -> None:
    for method in METHODS:
        made = make(method, fill=lambda key: method_defaults(key, training(30, model)))
        made.init([torch.ones(2)])  # which refuses what only a training could say


@pytest.mark.parametrize("method", METHODS)
def test_a_short_training_runs_methods_as_they_are_named(method: str) -> None:
    """Only what a method counts in steps depends on the length: a radius does not."""
    for model in ("resnet20", "vit_b_16"):
        short, long = (method_defaults(method, training(epochs, model)) for epochs in (1, 30))
        assert {k: v for k, v in short.items() if k not in COUNTED} == {
            k: v for k, v in long.items() if k not in COUNTED
        }
    shortest = Training(model="resnet20", steps=1, steps_per_epoch=391, examples=50_000, lr=0.2)
    made = make(method, fill=lambda key: method_defaults(key, shortest))
    assert made.rho == make(method, fill=lambda key: method_defaults(key, training(30))).rho


def test_what_the_user_gives_stays_as_it_is() -> None:
    assert make("looksam:alpha=0.7", fill=lambda key: method_defaults(key, training(2))).alpha == 0.7


@pytest.mark.parametrize("text", ["stable-sam:inner=looksam", "late:start=3,inner=looksam"])
def test_a_method_inside_another_is_filled_as_well(text: str) -> None:
    assert make(text, fill=lambda key: method_defaults(key, training(30))).inner.alpha == 0.2
