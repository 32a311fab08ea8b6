"""Dirichlet splits: every example once, enough for every client, proportions as the concentration says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lowland.core.errors import ArgumentError
from lowland.lab.data.dirichlet import dirichlet

CLASSES, CLIENTS = 10, 8
LABELS = torch.arange(2000) % CLASSES


def counts(parts: list[Tensor]) -> Tensor:
    """Examples by client and class, (clients, classes)."""
    return torch.stack([LABELS[part].bincount(minlength=CLASSES) for part in parts])


@pytest.mark.parametrize("alpha", [0.05, 0.3, 100.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_example_is_with_one_client(alpha: float, seed: int) -> None:
    parts = dirichlet(LABELS, CLIENTS, alpha=alpha, seed=seed)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(LABELS)))
    assert all(torch.equal(part, part.sort().values) for part in parts)


@pytest.mark.parametrize("fewest", [1, 32, 100])
def test_every_client_has_enough(fewest: int) -> None:
    for seed in range(5):
        assert min(map(len, dirichlet(LABELS, CLIENTS, alpha=0.3, seed=seed, fewest=fewest))) >= fewest


def test_the_seed_decides() -> None:
    one, same, other = (dirichlet(LABELS, CLIENTS, alpha=0.3, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_global_random_numbers_stay() -> None:
    before = torch.get_rng_state()
    dirichlet(LABELS, CLIENTS, alpha=0.3, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("alpha", [0.3, 3.0])
def test_the_variance_of_proportions_is_dirichlet_s(alpha: float) -> None:
    """Of a class, a client's proportion has the variance (1/K)(1 − 1/K)/(Kα + 1), with K clients."""
    drawn = torch.stack([counts(dirichlet(LABELS, CLIENTS, alpha=alpha, seed=seed)) for seed in range(60)])
    proportions = drawn.double() / (len(LABELS) / CLASSES)
    expected = (1 / CLIENTS) * (1 - 1 / CLIENTS) / (CLIENTS * alpha + 1)
    assert float(proportions.mean()) == pytest.approx(1 / CLIENTS, rel=1e-12)
    # 60 · 10 draws of 8 dependent proportions: the standard error of the variance is below 5 %; rounding adds less.
    assert float(proportions.var()) == pytest.approx(expected, rel=0.2)


def test_a_large_concentration_gives_equal_parts() -> None:
    parts = counts(dirichlet(LABELS, CLIENTS, alpha=1e6, seed=0))
    assert int((parts - len(LABELS) // CLASSES // CLIENTS).abs().max()) <= 1


def test_labels_need_not_be_consecutive() -> None:
    parts = dirichlet(torch.tensor([7, -3] * 50), 2, alpha=1.0, seed=0, fewest=10)
    assert sum(map(len, parts)) == 100


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "floats": ({"labels": torch.ones(4)}, "labels must be integers"),
    "a table": ({"labels": LABELS.view(100, 20)}, r"of shape \(100, 20\)"),
    "a list": ({"labels": [1, 2]}, "are a list"),
    "nothing": ({"labels": LABELS[:0]}, "labels must be integers"),
    "clients": ({"clients": 0}, "clients must be an integer >= 1"),
    "alpha": ({"alpha": 0}, "alpha must be a number > 0"),
    "seed": ({"seed": 0.5}, "seed must be an integer >= 0"),
    "fewest": ({"fewest": 300}, "fewest must be <= 250"),
    "no split": ({"fewest": 249, "alpha": 0.01}, "fewest must be what a split gives every client"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_are_checked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowland.lab.data.dirichlet.DRAWS", 100)
    changes, text = REFUSED[name]
    given = {"labels": LABELS, "clients": CLIENTS, "alpha": 0.3, "seed": 0} | changes
    with pytest.raises(ArgumentError, match=text):
        dirichlet(given.pop("labels"), given.pop("clients"), **given)
