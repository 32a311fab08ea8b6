"""Runs that were recorded on two DDP ranks, each of which reads half of every batch."""

from __future__ import annotations

from typing import Any

import pytest
from ranks import on_ranks

from official.files import deviation, names, recorded
from official.two_ranks import DESCRIBED, LOCAL, trained

# Both sides compute in float64 for 20 steps, and both ranks add the same two numbers.
TIGHT = 1e-10


def apart(name: str, told: dict[str, Any]) -> float:
    """The largest deviation on either rank."""
    run = recorded(name)
    paths = on_ranks(2, trained, name, told)
    assert all(path.shape == run.weights.shape for path in paths)
    return max(deviation(path, run.weights) for path in paths)


@pytest.mark.parametrize(("name", "told"), [(name, told) for name, ways in DESCRIBED.items() for told in ways])
def test_follows_on_two_ranks(name: str, told: dict[str, Any]) -> None:
    assert apart(name, told) < TIGHT


@pytest.mark.parametrize("name", ["ddp2_composer_mlp_sgd", "ddp2_release_mlp_sgd"])
def test_an_ascent_along_the_mean_gradient_is_another_method(name: str) -> None:
    told = {key: value for key, value in DESCRIBED[name][-1].items() if key not in LOCAL}
    assert apart(name, told) > 1e-3


def test_every_run_on_two_ranks_is_followed() -> None:
    assert set(DESCRIBED) == {name for name in names() if recorded(name).ranks == 2}
