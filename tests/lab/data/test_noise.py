from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from lowland.core.errors import ArgumentError
from lowland.lab.data.images import ImageSet
from lowland.lab.data.noise import noisy
from lowland.lab.tasks.cifar import CONFUSIONS

COUNT = 2003


def task(classes: int = 10, confusions: Mapping[int, int] | None = None) -> ImageSet:
    targets = torch.arange(COUNT) % classes
    images = torch.zeros(COUNT, 1, 1, 1, dtype=torch.uint8)
    return ImageSet(
        name="stripes",
        train_inputs=images,
        train_targets=targets,
        clean_targets=targets,
        test_inputs=images[:5],
        test_targets=targets[:5],
        classes=classes,
        mean=(0.0,),
        std=(1.0,),
        confusions=confusions,
    )


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 0.8, 0.999])
def test_symmetric_flips_exactly_the_rounded_count(rate: float) -> None:
    noised = noisy(task(), rate)
    wrong = noised.train_targets != noised.clean_targets
    assert int(wrong.sum()) == round(rate * COUNT)
    assert torch.equal(noised.clean_targets, task().clean_targets)
    assert torch.equal(noised.test_targets, task().test_targets)
    assert (noised.noise, noised.noise_kind, noised.noise_seed) == (rate, "symmetric", 0)


def test_symmetric_is_uniform_over_the_other_classes() -> None:
    noised = noisy(task(classes=5), 0.9)
    wrong = noised.train_targets != noised.clean_targets
    shift = (noised.train_targets - noised.clean_targets)[wrong] % 5
    counts = torch.bincount(shift, minlength=5)
    assert counts[0] == 0
    # 4 shifts, about 451 each; 5 standard deviations of the binomial are 92
    assert (counts[1:] - counts.sum() / 4).abs().max() < 92


def test_asymmetric_without_a_table_is_the_next_class() -> None:
    noised = noisy(task(classes=7), 0.3, "asymmetric")
    wrong = noised.train_targets != noised.clean_targets
    assert int(wrong.sum()) == round(0.3 * COUNT)
    assert torch.equal(noised.train_targets[wrong], (noised.clean_targets[wrong] + 1) % 7)


def test_asymmetric_follows_the_table_of_cifar10() -> None:
    noised = noisy(task(confusions=CONFUSIONS), 0.4, "asymmetric")
    clean, got = noised.clean_targets, noised.train_targets
    wrong = got != clean
    concerned = sum(int((clean == c).sum()) for c in CONFUSIONS)
    assert int(wrong.sum()) == round(0.4 * concerned)
    pairs = set(zip(clean[wrong].tolist(), got[wrong].tolist(), strict=True))
    # truck → automobile, bird → airplane, deer → horse, cat ↔ dog
    assert pairs == {(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)}


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_depends_on_the_seed_alone(kind: str) -> None:
    first = noisy(task(), 0.2, kind, seed=1).train_targets  # type: ignore[arg-type]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(noisy(task(), 0.2, kind, seed=1).train_targets, first)  # type: ignore[arg-type]
    assert not torch.equal(noisy(task(), 0.2, kind, seed=2).train_targets, first)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_less_noise_is_a_part_of_more(kind: str) -> None:
    less = noisy(task(), 0.1, kind)  # type: ignore[arg-type]
    more = noisy(task(), 0.3, kind)  # type: ignore[arg-type]
    wrong = less.train_targets != less.clean_targets
    assert torch.equal(more.train_targets[wrong], less.train_targets[wrong])


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1, float("nan"), True, "0.2"])
def test_bad_rate(rate: object) -> None:
    with pytest.raises(ArgumentError, match=r"noise must be in \[0, 1\), but is"):
        noisy(task(), rate)  # type: ignore[arg-type]


def test_bad_kind() -> None:
    with pytest.raises(ArgumentError, match="noise_kind must be one of 'symmetric', 'asymmetric'"):
        noisy(task(), 0.2, "human")  # type: ignore[arg-type]
