"""Means with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lowland.core.errors import LossError


class Estimate(NamedTuple):
    """A mean and its standard error.

    Attributes:
        value: The mean, shape ``()``, on the model's device.
        error: The standard error of the mean, shape ``()``; NaN if there is one value only.
    """

    value: Tensor
    error: Tensor


def weighted(values: Sequence[Tensor], weights: Sequence[Tensor], *, even: bool = False) -> Estimate:
    """The weighted mean, and its standard error with the values as an independent sample.

    With the weights w_i, which sum to 1, the standard error is ``sqrt(k / (k - 1) * sum of w_i^2 (x_i - mean)^2)``. For
    equal weights this is s / sqrt(k). Values of weight 0 do not count.

    Args:
        values: The values, each of shape ``()``.
        weights: What each weighs, >= 0, each of shape ``()``.
        even: Refuse unequal weights, because the values are those of mean losses.

    Raises:
        LossError: The weights must be equal and are not.
    """
    given = torch.stack(list(values))  # (k,)
    fractions = torch.stack(list(weights))
    if even:
        refuse_uneven(fractions)
    k = (fractions > 0).sum()
    fractions = (fractions / fractions.sum()).to(given.dtype)
    mean = (given * fractions).sum()
    squares = (fractions * (given - mean)).square().sum()
    return Estimate(mean, torch.where(k > 1, (squares * k / (k - 1)).sqrt(), torch.nan))


def refuse_uneven(sizes: Tensor) -> None:
    """Refuse mean losses of batches of different sizes, shape ``(batches,)``, whose weights are not known.

    Raises:
        LossError: The sizes differ.
    """
    if bool((sizes != sizes[0]).any()):
        raise LossError(
            "loss_fn must return what a batch weighs, too, but returned a mean, shape (), for batches of different "
            f'sizes, {int(sizes.min())} to {int(sizes.max())}; return one loss per example, reduction="none", or '
            "lowland.Loss(total, count), or pass batches of one size"
        )


def equal(values: Sequence[Tensor]) -> Estimate:
    """:func:`weighted` with equal weights."""
    return weighted(values, [torch.ones_like(value) for value in values])
