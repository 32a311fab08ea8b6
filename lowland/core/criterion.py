"""A loss function in two parts, between which a method can see the model's outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowland.core import checks
from lowland.core.errors import ArgumentError, LossError
from lowland.core.loss import Loss
from lowland.core.precision import of_vectors
from lowland.core.shards import is_sharded


@dataclass(frozen=True)
class Criterion:
    """A loss function in two parts: first the model's outputs, then their loss.

    It is a loss function like any other, and every method takes it. Functional SAM needs it, because it differentiates
    the loss by the outputs::

        loss_fn = lowland.Criterion(
            lambda model, batch: model(batch[0]),
            lambda logits, batch: cross_entropy(logits, batch[1], reduction="none"),
        )

    Args:
        forward: A function ``(model, batch) -> outputs``. The outputs are a tensor, or tensors in tuples, lists, dicts
            or other containers that ``torch.utils._pytree`` knows.
        criterion: A function ``(outputs, batch) -> loss``. The loss is one per example, shape ``(B,)``; their mean,
            shape ``()``; or a :class:`lowland.Loss`.

    Raises:
        ArgumentError: A part is not a function of two arguments, or is a loss of ``torch.nn``.
    """

    forward: Callable[[Any, Any], Any]
    criterion: Callable[[Any, Any], Tensor | Loss]

    def __post_init__(self) -> None:
        _check("forward", self.forward, "(model, batch) -> outputs", "lambda model, batch: model(batch[0])")
        _check(
            "criterion",
            self.criterion,
            "(outputs, batch) -> loss",
            'lambda outputs, batch: cross_entropy(outputs, batch[1], reduction="none")',
        )

    def __call__(self, model: Any, batch: Any) -> Tensor | Loss:
        """The loss of the model's outputs for a batch."""
        return self.criterion(self.forward(model, batch), batch)


def _check(name: str, part: Any, takes: str, example: str) -> None:
    kind = type(part).__name__ if isinstance(part, nn.Module) else getattr(part, "__name__", repr(part))
    if not callable(part) or isinstance(part, type) or type(part).__module__ == "torch.nn.modules.loss":
        raise ArgumentError(f"{name} must be a function {takes}, but is {kind}; write {example}")
    reason = checks.call_error(part, 2)
    if reason is not None:
        raise ArgumentError(f"{name} must be a function {takes}, but {kind}{reason}; write {example}")


@dataclass(frozen=True, eq=False)
class _Kept:
    """What one forward pass has left behind.

    Attributes:
        spec: The structure of the outputs.
        cotangents: The derivative of the summed loss by every output; None for those that the loss does not use.
        losses: Whether the loss was one per example.
        count: The divisor of a ``Loss``; None for other losses.
    """

    spec: Any
    cotangents: list[Tensor | None]
    losses: bool
    count: Tensor | float | None


class Cotangents:
    """The derivative of a loss by the outputs, taken in one pass and used in the next.

    ``taking`` and ``using`` are loss functions for two passes over the same batch, in the same parts. The gradient of
    ``using`` is ``J^T c``: J is the Jacobian of the outputs in the second pass, c the derivative of the loss by the
    outputs in the first pass. The two losses are reduced alike over parts and ranks.

    Args:
        loss: The loss function in two parts.
    """

    def __init__(self, loss: Criterion) -> None:
        self._loss = loss
        self._kept: list[_Kept] = []  # one entry per part of the batch, in order

    def taking(self, model: Any, batch: Any) -> Tensor | Loss:
        """The loss itself. Outputs in fp16 and bf16 are given to the criterion in fp32, so that none underflows.

        Raises:
            LossError: The loss reaches trainable tensors otherwise than through the outputs, or the outputs cannot be
                used; see :meth:`using`.
        """
        leaves, spec = pytree.tree_flatten(self._loss.forward(model, batch))
        given = [_given(leaf) for leaf in leaves]
        versions = [t._version for t in given if isinstance(t, Tensor)]
        loss = self._loss.criterion(pytree.tree_unflatten(given, spec), batch)
        if versions != [t._version for t in given if isinstance(t, Tensor)]:
            raise LossError(
                "criterion must not change the outputs in place, but has written to one; compute new tensors from them"
            )
        total = loss.total if isinstance(loss, Loss) else loss.sum() if isinstance(loss, Tensor) else None
        if total is None or not total.requires_grad:
            return loss  # which the engine refuses, and says why
        ports = [t if isinstance(t, Tensor) and t.requires_grad else None for t in given]
        _check_reached(total, [t for t in ports if t is not None])
        cotangents = _derivatives(total, ports)
        by_example = isinstance(loss, Tensor) and loss.dim() == 1
        if by_example:
            _check_examples(cotangents, len(loss))  # type: ignore[arg-type]
        self._kept.append(_Kept(spec, cotangents, by_example, loss.count if isinstance(loss, Loss) else None))
        return loss

    def using(self, model: Any, batch: Any) -> Tensor | Loss:
        """``sum(outputs * c)``, with one sum per example if the loss is one per example.

        Raises:
            LossError: The outputs have another structure or other shapes than in the first pass.
        """
        if not self._kept:
            raise LossError("the second pass has more parts than the first; this is a bug of lowland, please report it")
        kept = self._kept.pop(0)
        leaves, spec = pytree.tree_flatten(self._loss.forward(model, batch))
        if spec != kept.spec:
            raise LossError(
                "forward must return the same structure at the displaced weights as at the weights, but returned "
                f"{spec} after {kept.spec}; let it not depend on the weights"
            )
        products = []
        for leaf, c in zip(leaves, kept.cotangents, strict=True):
            if c is None:
                continue
            if leaf.shape != c.shape:
                raise LossError(
                    "forward must return the same shapes at the displaced weights as at the weights, but returned "
                    f"{tuple(leaf.shape)} after {tuple(c.shape)}; let them not depend on the weights"
                )
            products.append(leaf.to(c.dtype) * c)
        if kept.losses:
            return _summed([p.flatten(1).sum(1) if p.dim() > 1 else p for p in products])
        total = _summed([p.sum() for p in products])
        return total if kept.count is None else Loss(total, kept.count)


def _given(leaf: Any) -> Any:
    """What the criterion gets for an output: a view, at which the derivative is taken, in fp32 at least.

    Not the output itself, because ``fully_shard`` has hooks on it that prepare for the backward of the model.

    Raises:
        LossError: The output is complex, or a DTensor.
    """
    if not isinstance(leaf, Tensor) or not leaf.requires_grad:
        return leaf
    if leaf.is_complex() or is_sharded(leaf):
        kind = "complex" if leaf.is_complex() else "a DTensor"
        raise LossError(
            f"outputs must be real tensors of this rank, but one is {kind}; let forward return torch.view_as_real(…), "
            "or output.full_tensor()"
        )
    wide = of_vectors(leaf.dtype)
    return leaf.view_as(leaf) if wide == leaf.dtype else leaf.to(wide)


def _derivatives(total: Tensor, ports: list[Tensor | None]) -> list[Tensor | None]:
    """The derivative of the loss by every port; the graph of the loss stays for its backward."""
    present = [t for t in ports if t is not None]
    found = iter(torch.autograd.grad(total, present, retain_graph=True, allow_unused=True))
    return [None if t is None else next(found) for t in ports]


def _check_reached(total: Tensor, ports: list[Tensor]) -> None:
    """Refuse a criterion that reaches trainable tensors past the outputs, whose gradient would be lost.

    Raises:
        LossError: It does.
    """
    ends = {t.grad_fn for t in ports}
    seen: set[Any] = set()
    waiting: list[Any] = [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node in ends:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            raise LossError(
                "criterion must depend on trainable tensors through the outputs only, but reaches one of shape "
                f"{tuple(node.variable.shape)} otherwise, whose gradient would be lost; let forward compute with it, "
                "and return the result in tensors of a tuple, list or dict"
            )
        waiting += [parent for parent, _ in node.next_functions]


def _check_examples(cotangents: list[Tensor | None], size: int) -> None:
    """Refuse outputs that the loss uses and that have no examples along dimension 0, if it is one per example.

    Raises:
        LossError: An output has another length than the losses.
    """
    for t in cotangents:
        if t is not None and (t.dim() == 0 or t.shape[0] != size):
            raise LossError(
                f"outputs must have examples along dimension 0 if the loss is one per example, shape ({size},), but "
                f"one has shape {tuple(t.shape)}; return lowland.Loss(losses.sum(), len(losses)) from the criterion"
            )


def _summed(parts: list[Tensor]) -> Tensor:
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result
