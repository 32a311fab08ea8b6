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
def test_every_method_can_be_named_without_more(config, method):
    for kind in ("steps", "gradients", "seconds"):
        completed(config, method, kind)


def test_the_text_comes_before_the_recipe(config):
    assert completed(config, "looksam").alpha == 0.2
    assert completed(config, "looksam:alpha=0.7").alpha == 0.7
    assert completed(config, "gsam").rho == follow_lr(0.05, 0.0, lr_high=config.recipe.lr)
    assert completed(config, "gsam:rho=0.1").rho == 0.1
    assert completed(config, "late:start=0.5") == make("late:start=0.5")
    assert completed(config, "late:total=50") == make("late:start=0.9,total=50")
    assert completed(config, "late:start=7").start == 7


def test_ausam_keeps_a_score_for_every_training_example(config):
    found = completed(config, "ausam", examples=77)
    assert (found.examples, found.warmup, found.ramp) == (77, EPOCH, 0.3)


def test_methods_inside_others_get_their_own_defaults(config):
    assert completed(config, "late:inner=looksam:k=3").inner == LookSAM(k=3, alpha=0.2)
    assert completed(config, "late:inner=stable-sam:inner=vsam").inner.inner.warmup == 0.1
    assert completed(config, "stable-sam:inner=gsam").inner.rho == follow_lr(0.05, 0.0, lr_high=config.recipe.lr)


@pytest.mark.parametrize("method", ["late", "vsam", "ausam", "ae-sam"])
def test_lengths_do_not_depend_on_the_budget(config, method):
    found = [
        completed(config, method, kind, limit) for kind, limit in (("steps", 9), ("gradients", 5e4), ("seconds", 3))
    ]
    assert found[0] == found[1] == found[2]
    assert repr(found[0]) == repr(found[2])


@pytest.mark.parametrize("kind", ["steps", "gradients"])
def test_errors_name_the_method(config, kind):
    with pytest.raises(UnknownNameError, match="did you mean 'looksam'"):
        completed(config, "late:inner=looksma", kind)
    with pytest.raises(ArgumentError, match="delta must be in"):
        completed(config, "ae-sam:delta=2", kind)
