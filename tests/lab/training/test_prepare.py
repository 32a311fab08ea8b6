from __future__ import annotations

from dataclasses import replace

import pytest

from lowland import LookSAM
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.core.schedule import follow_lr
from lowland.lab.budget import Budget
from lowland.lab.training.prepare import complete
from lowland.methods import METHODS, make

EPOCH = 10  # steps


class Batches:
    """As much of a loader as is looked at."""

    def __init__(self, positions):
        self.positions = positions

    def __len__(self):
        return EPOCH


def completed(config, method, kind="steps", limit=400, examples=99):
    return complete(replace(config, method=method, budget=Budget(kind=kind, limit=limit)), Batches(examples))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["steps", "gradients", "seconds"])
def test_every_method_can_be_named_without_more(config, method, kind):
    completed(config, method, kind)


def test_the_text_comes_before_the_recipe(config):
    assert completed(config, "looksam").alpha == 0.2
    assert completed(config, "looksam:alpha=0.7").alpha == 0.7
    assert completed(config, "gsam").rho == follow_lr(0.05, 0.0, lr_high=config.recipe.lr)
    assert completed(config, "gsam:rho=0.1").rho == 0.1
    assert completed(config, "late:start=0.5") == make("late:start=0.5,total=400")
    assert completed(config, "late:total=50") == make("late:start=0.9,total=50")
    assert completed(config, "late:start=7").start == 7


def test_ausam_keeps_a_score_for_every_training_example(config):
    found = completed(config, "ausam", examples=77)
    assert (found.examples, found.warmup, found.ramp) == (77, EPOCH, 12 * EPOCH)


def test_methods_inside_others_get_their_own_defaults(config):
    assert completed(config, "late:inner=looksam:k=3").inner == LookSAM(k=3, alpha=0.2)
    assert completed(config, "late:inner=stable-sam:inner=ae-sam").inner.inner.total == 400
    assert completed(config, "stable-sam:inner=gsam").inner.rho == follow_lr(0.05, 0.0, lr_high=config.recipe.lr)


@pytest.mark.parametrize(("method", "price"), [
    ("late", 1.1),  # 0.9 of the steps at one gradient, 0.1 at two
    ("late:start=0.5", 1.5),
    ("late:start=0.5,inner=looksam:k=2", 1.25),
])  # fmt: skip
def test_a_budget_of_gradients_is_fewer_steps_for_dearer_methods(config, method, price):
    assert completed(config, method, "gradients", 3000).total == round(3000 / price)


@pytest.mark.parametrize("kind", ["gradients", "seconds"])
def test_a_late_phase_is_as_late_under_any_budget(config, kind):
    config = replace(config, recipe=config.recipe.replace(epochs=60))  # 600 plain steps, also the default in seconds
    found = completed(config, "late:start=0.5", kind, 600)
    before = found.start * found.total
    assert before + 2 * (found.total - before) == pytest.approx(600, abs=2)


def test_shares_of_a_training_are_shares_of_its_own_steps(config):
    # 40 epochs at one gradient; AUSAM takes 1 a step, and 2 in its first epoch
    found = completed(config, "ausam", "gradients", 400)
    assert found.warmup == EPOCH
    assert found.ramp == pytest.approx(0.3 * 400 / (1 + 1 / 40), abs=1)  # the tiny training has whole steps


@pytest.mark.parametrize("kind", ["steps", "gradients"])
def test_errors_name_the_method(config, kind):
    with pytest.raises(UnknownNameError, match="did you mean 'looksam'"):
        completed(config, "late:inner=looksma", kind)
    with pytest.raises(ArgumentError, match="delta must be in"):
        completed(config, "ae-sam:delta=2", kind)
