"""Label noise: deliberately wrong training labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.lab.data.images import ImageSet
from lowland.lab.data.streams import stream

NoiseKind = Literal["symmetric", "asymmetric"]


def noisy(images: ImageSet, rate: float, kind: NoiseKind = "symmetric", seed: int = 0) -> ImageSet:
    """The images with a fraction of the training labels replaced; test labels are unchanged.

    ``symmetric`` replaces a label by one of the *other* classes with equal probability, so ``rate`` is the fraction of
    wrong labels. ``asymmetric`` replaces a label by the class of ``images.confusions``, or by the next class if that
    is None. Here ``rate`` is a fraction of the labels in classes that are replaced: 5 of CIFAR-10's 10 classes are, so
    0.4 makes 20 % of all labels wrong, as is usual in the literature.

    The number of replaced labels is exactly ``round(rate · replaceable labels)``, and the choice depends only on
    ``seed``. A smaller rate replaces a subset of the labels that a larger rate replaces.

    Args:
        images: Images without label noise.
        rate: The noise rate, in [0, 1).
        kind: "symmetric" or "asymmetric".
        seed: Any integer; the same seed gives the same labels.

    Raises:
        ArgumentError: ``rate`` or ``kind`` is out of range.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ArgumentError(
            f"noise must be in [0, 1), but is {rate!r}; it is the fraction of wrong labels, such as 0.2"
        )
    checks.one_of("noise_kind", kind, ("symmetric", "asymmetric"))
    generator = stream(seed, "label noise", kind)
    if kind == "symmetric":
        targets = _symmetric(images.clean_targets, images.classes, rate, generator)
    else:
        targets = _asymmetric(images.clean_targets, _table(images), rate, generator)
    return replace(images, train_targets=targets, noise=float(rate), noise_kind=kind, noise_seed=seed)


def _symmetric(clean: Tensor, classes: int, rate: float, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(clean), generator=generator)
    shift = torch.randint(1, classes, (len(clean),), generator=generator)  # 1..C-1: never the same class
    chosen = order[: round(rate * len(clean))]
    targets = clean.clone()
    targets[chosen] = (clean[chosen] + shift[chosen]) % classes
    return targets


def _asymmetric(clean: Tensor, table: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    replaceable = (table[clean] != clean).nonzero().squeeze(1)
    order = torch.randperm(len(replaceable), generator=generator)
    chosen = replaceable[order[: round(rate * len(replaceable))]]
    targets = clean.clone()
    targets[chosen] = table[clean[chosen]]
    return targets


def _table(images: ImageSet) -> Tensor:
    """The class that replaces each class, shape ``(C,)``; a class without a confusion keeps itself."""
    following: Mapping[int, int] = {c: (c + 1) % images.classes for c in range(images.classes)}
    confusions = following if images.confusions is None else images.confusions
    return torch.tensor([confusions.get(c, c) for c in range(images.classes)])
