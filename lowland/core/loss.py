"""What a loss function returns: losses by example, their mean, or a sum with its divisor."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from numbers import Real
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core import vec
from lowland.core.at_hand import at_hand
from lowland.core.errors import LossError
from lowland.core.lagged import read
from lowland.core.transfer import scalar


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss as a sum and what it is divided by, such as tokens, boxes or the sum of weights.

    A mean over padded tokens cannot be combined from the means of parts, whose numbers of tokens differ. With the sum
    and the count, micro-batches, parts and ranks are combined exactly: sum of all totals over sum of all counts.

    ::

        def loss_fn(model, batch):
            losses = cross_entropy(model(batch["ids"]), batch["labels"], ignore_index=-100, reduction="sum")
            return lowland.Loss(losses, (batch["labels"] != -100).sum())

    Args:
        total: The summed loss, a floating-point tensor of shape ``()``.
        count: What it is divided by, >= 0: a number, or a tensor of shape ``()`` that needs no gradient.
        aux: Anything else that the forward pass computed, such as logits; see ``Engine.aux``.

    Raises:
        LossError: ``total`` or ``count`` is something else.
    """

    total: Tensor
    count: Tensor | float
    aux: Any = None

    def __post_init__(self) -> None:
        total, count = self.total, cast(Any, self.count)
        if not isinstance(total, Tensor) or total.dim() != 0 or not total.is_floating_point():
            raise LossError(
                f"Loss(total, count) needs a total of shape (), floating-point, but got {_shown(total)}; sum the "
                "losses, such as losses.sum()"
            )
        if isinstance(count, Tensor):
            if count.dim() != 0 or count.is_complex() or count.requires_grad:
                raise LossError(
                    f"Loss(total, count) needs a count of shape () without gradient, but got {_shown(count)}; pass "
                    "mask.sum(), or weights.sum().detach()"
                )
        elif isinstance(count, bool) or not isinstance(count, Real) or not 0 <= float(count) < float("inf"):
            raise LossError(
                f"Loss(total, count) needs a count >= 0, but got {_shown(count)}; pass what the total is divided by"
            )


LossFn: TypeAlias = Callable[[Any, Any], "Tensor | Loss"]


@dataclass(frozen=True, eq=False)
class Terms:
    """A loss as it was read.

    Attributes:
        mean: The mean, shape ``()``, to be differentiated; of a ``Loss``, total / count.
        losses: One loss per example, ``(B,)``; None where there is only their mean or sum.
        total: Of a ``Loss`` its total, else None.
        count: Of a ``Loss`` its count as a double of shape ``()`` beside it; of losses by example how many there are;
            of a mean None.
        aux: What the loss function returned besides.
    """

    mean: Tensor
    losses: Tensor | None = None
    total: Tensor | None = None
    count: Tensor | float | None = None
    aux: Any = None


def terms(loss: Any, size: int | None) -> Terms:
    """Read what a loss function returned.

    Args:
        loss: One loss per example, ``(B,)``, their mean, ``()``, or a :class:`Loss`.
        size: The number of examples; None where it is not known.

    Raises:
        LossError: It is nothing of that.
    """
    if isinstance(loss, Loss):
        device = loss.total.device
        count = scalar(loss.count, vec.wide(device), device)
        mean = loss.total / divisor(loss.total.detach(), count).to(loss.total.dtype)
        return Terms(mean, total=loss.total, count=count, aux=_mapped(Tensor.detach, loss.aux))
    if not isinstance(loss, Tensor):
        raise LossError(
            f"loss_fn must return a tensor of shape (B,) or (), or Loss(total, count, aux), but returned a "
            f'{type(loss).__name__}; return the loss itself, such as cross_entropy(…, reduction="none")'
        )
    if not loss.is_floating_point():
        raise LossError(
            f"loss_fn must return a floating-point loss, but returned {loss.dtype}; return the loss, not a count"
        )
    if loss.dim() == 0:
        return Terms(loss)
    if loss.dim() != 1 or loss.shape[0] == 0 or (size is not None and loss.shape[0] != size):
        shape = "(B,)" if size is None else f"({size},)"
        raise LossError(
            f"loss_fn must return one loss per example, shape {shape}, or their mean, shape (), but returned "
            f'shape {tuple(loss.shape)}; use reduction="none" or "mean" and average other dimensions, or return '
            "Loss(total, count); if the examples are not counted by dimension 0, say how: Engine(…, cut=Slices(dim=1))"
        )
    return Terms(loss.mean(), losses=loss, count=float(loss.shape[0]))


def check_count(count: Tensor | float | None) -> None:
    """Refuse a count below 0, or one that is not finite, where reading it does not wait for a GPU.

    Raises:
        LossError: The count is such a number.
    """
    value = read(count.reshape(1))[0] if isinstance(count, Tensor) and at_hand(count) else 1.0
    if not 0 <= value < float("inf"):
        raise LossError(
            f"Loss(total, count) needs a finite count >= 0, but got {value}; pass what the total is divided by"
        )


def one_for_all(losses: Tensor | None, inside: Tensor | None = None, runs: int = 1) -> bool:
    """Whether losses by example are one number that was expanded or repeated, such as a mean.

    Args:
        losses: The losses of all examples, shape ``(B,)``.
        inside: Under vmap, the tensor of all runs, which has the history.
        runs: The number of these runs, each with a number of its own.
    """
    if losses is None or len(losses) < 2:
        return False
    if losses.stride() == (0,):
        return True
    made: Any = (losses if inside is None else inside).grad_fn
    while made is not None and made.name() in ("CloneBackward0", "ViewBackward0", "MulBackward0", "DivBackward0"):
        before = [node for node, _ in made.next_functions if node is not None]
        made = before[0] if len(before) == 1 and not _by_example(made, runs) else None
    return made is not None and made.name() in ("RepeatBackward0", "ExpandBackward0") and _of_one_number(made, runs)


def _by_example(node: Any, runs: int) -> bool:
    """Whether a product or quotient has a factor of several entries, such as weights by example."""
    factors = (getattr(node, name, None) for name in ("_saved_other", "_saved_self"))
    # The number of each run has the shape (runs, 1).
    return any(isinstance(f, Tensor) and (f.numel() > runs or f.shape[-1:].numel() > 1) for f in factors)


def _of_one_number(node: Any, runs: int) -> bool:
    """Whether what was expanded or repeated has one entry for each run."""
    return math.prod(getattr(node, "_saved_self_sym_sizes", ())) == runs


def divisor(total: Tensor, count: Tensor) -> Tensor:
    """The count, or 1 where nothing was counted and nothing was summed, as on a rank whose examples are all padding."""
    return torch.where((count == 0) & (total == 0), torch.ones_like(count), count)


def copied(aux: Any) -> Any:
    """The auxiliary outputs of a loss function, with copies of their tensors."""
    return _mapped(Tensor.clone, aux)


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with all its tensors changed, also those in fields of dataclasses."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if not is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        result = copy.copy(leaf)
        for f in fields(leaf):
            if hasattr(leaf, f.name):
                object.__setattr__(result, f.name, _mapped(change, getattr(leaf, f.name)))
        return result

    return pytree.tree_map(changed, value)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        kind = ", which needs a gradient" if value.requires_grad else ""
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}{kind}"
    return f"{value!r}"
