"""Checks that passes change the gradients of the engine's parameters only."""

from __future__ import annotations

import gc
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from lowland.core import shards
from lowland.core.errors import LossError, ParameterError
from lowland.core.vec import Vec
from lowland.executors.uses import modules_of

if TYPE_CHECKING:
    from lowland.core.probe import Probe
    from lowland.executors.base import Work

_GRAD = operator.attrgetter("grad")
_VIEWS = {
    f"{name}Backward{number}"
    for name in ("View", "AsStrided", "T", "Transpose", "Permute", "Select", "Slice", "Unsqueeze", "Squeeze", "Expand")
    for number in (0, 1, 2)
} | {
    f"{name}Backward0"
    for name in ("ReshapeAlias", "Unbind", "Split", "SplitWithSizes", "Unflatten", "Diagonal", "Unfold", "Alias")
}

Suspect: TypeAlias = "tuple[weakref.ref[Tensor], Tensor | None]"  # a tensor, and a copy of its gradient before backward
Remembered: TypeAlias = "tuple[weakref.ref[Tensor], Tensor | None, Tensor | None]"  # a tensor, its gradient, a copy


def graph(loss: Tensor) -> list[Any]:
    """All nodes of a loss's autograd graph, the node of the loss first."""
    nodes = {loss.grad_fn: None} if loss.grad_fn is not None else {}
    waiting: list[Any] = list(nodes)
    while waiting:
        for parent, _ in waiting.pop().next_functions:
            if parent is not None and parent not in nodes:
                nodes[parent] = None
                waiting.append(parent)
    return list(nodes)


def leaves(loss: Tensor) -> set[int]:
    """The ids of the leaf tensors of a loss's graph. A backward that reaches others runs a nested backward."""
    return {id(node.variable) for node in graph(loss) if hasattr(node, "variable")}


def strangers(
    loss: Tensor, params: Sequence[Tensor], model: nn.Module, loss_fn: Callable[..., Any] | None
) -> list[Suspect]:
    """Refuse a loss that reaches trainable parameters outside the engine.

    Their ``.grad`` would be the sum of the gradients of all passes, most of them at displaced weights.

    Args:
        loss: The loss, with its graph.
        params: The engine's parameters, and the tensors that replace them during a pass.
        model: The model, whose parameters gathered by ``fully_shard`` are allowed.
        loss_fn: The loss function, for names in messages.

    Returns:
        The reached tensors that are no parameters. Some of them are freed with the graph, such as inputs for which the
        loss function sets ``requires_grad``; :func:`dismiss` refuses the others.

    Raises:
        ParameterError: The loss reaches a parameter outside the engine.
    """
    known = {id(p) for p in params} | _gathered(model)
    leaves = [node.variable for node in graph(loss) if hasattr(node, "variable")]
    if isinstance(loss, Tensor) and loss.grad_fn is None:
        leaves = [loss]
    others = [t for t in leaves if id(t) not in known]
    if any(isinstance(t, nn.Parameter) for t in others):
        raise _refusal(others, loss_fn)
    return [(weakref.ref(t), None if t.grad is None else t.grad.clone()) for t in others]


def dismiss(suspects: Sequence[Suspect], loss_fn: Callable[..., Any] | None) -> None:
    """Refuse reached tensors that still exist after the graph was freed, and restore their ``.grad``.

    Raises:
        ParameterError: Such a tensor exists.
    """
    if not any(ref() is not None for ref, _ in suspects):
        return
    gc.collect()
    remaining = [(t, grad) for ref, grad in suspects if (t := ref()) is not None]
    for t, grad in remaining:
        t.grad = grad
    if remaining:
        raise _refusal([t for t, _ in remaining], loss_fn)


def _refusal(strangers: Sequence[Tensor], loss_fn: Callable[..., Any] | None) -> ParameterError:
    names = {
        id(p): f"{place}.{name}".removesuffix(".")
        for place, m in modules_of(loss_fn).items()
        for name, p in m.named_parameters()
    }
    names_shown = sorted(names.get(id(t), f"a tensor of shape {tuple(t.shape)}") for t in strangers)
    shown = ", ".join(names_shown[:3])
    more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
    return ParameterError(
        f"every trainable tensor that the loss reaches must be the engine's, but {shown}{more} "
        f"{'is' if len(strangers) == 1 else 'are'} not: passes would add their gradients up; give the module to the "
        "engine, Engine(method, [model, head], optimizer, loss_fn), freeze it, or detach it"
    )


def _gathered(model: nn.Module) -> set[int]:
    """The ids of the gathered parameters that replace the shards of ``fully_shard`` during a pass."""
    ids: set[int] = set()
    for m in model.modules():
        state = m._get_fsdp_state() if hasattr(m, "_get_fsdp_state") else None  # type: ignore[operator]
        group = getattr(state, "_fsdp_param_group", None)
        for p in getattr(group, "fsdp_params", ()):
            ids.add(id(getattr(p, "_unsharded_param", None)))
        if state is not None:
            ids |= {id(p) for part in m.modules() for p in part._parameters.values()}
    return ids


def outsiders(work: Work) -> list[Tensor]:
    """The trainable tensors outside the engine that model or loss function use, and that a later loss may reach."""
    known = set(map(id, work.model.parameters()))
    named = [p for m in modules_of(work.loss_fn).values() for p in m.parameters()] + work.buffers.trainable
    return [p for p in {id(p): p for p in named}.values() if id(p) not in known]


def checks_reach(work: Work) -> bool:
    """Whether this step checks what its losses reach: in watched steps, or if an outside parameter is trainable."""
    return work.step.watched or any(p.requires_grad for p in work.outsiders)


def remembered(tensors: Sequence[Tensor]) -> list[Remembered]:
    """The gradients of trainable tensors, and copies of them."""
    leaves = [t for t in tensors if t.requires_grad and t.is_leaf]
    return [(weakref.ref(t), t.grad, None if t.grad is None else t.grad.clone()) for t in leaves]


def others(work: Work) -> list[Remembered]:
    """The gradients of the tensors outside the engine, which a backward must not change.

    If the caller computes the loss, they include the gradients of all parameters of the process, because the loss
    function is not known.
    """
    parameters = [t for ref, _, _ in work.step.gradients or () if isinstance(t := ref(), nn.Parameter)]
    return remembered([*work.outsiders, *parameters]) if parameters or work.outsiders else []


def check_others(before: Sequence[Remembered], loss_fn: Callable[..., Any] | None) -> None:
    """Refuse a backward that has changed the gradient of a tensor outside the engine.

    A nested backward, as in reentrant checkpointing, may change a gradient that the loss's graph does not reach.

    Raises:
        ParameterError: A gradient has changed; all are restored.
    """
    changed = []
    for ref, grad, copy in before:
        t = ref()
        if t is not None and (t.grad is not grad or (grad is not None and not shards.same(grad, copy))):  # type: ignore[arg-type]
            changed.append(t)
    if changed:
        _put_back(before)
        raise _refusal(changed, loss_fn)


def _put_back(before: Sequence[Remembered]) -> None:
    for ref, grad, copy in before:
        if (t := ref()) is not None:
            if grad is not None and copy is not None:
                grad.detach().copy_(copy)
            t.grad = grad


def remember(work: Work) -> None:
    """Copy the gradients of all other trainable tensors, to which a backward of the caller may add."""
    if work.step.gradients is None and checks_reach(work):
        known = set(map(id, work.params)) | (_gathered(work.model) if work.replicas.sharded else set())
        tensors: Sequence[Any] = gc.get_objects() if work.step.watched else work.outsiders
        work.step.gradients = remembered([t for t in tensors if issubclass(type(t), Tensor) and id(t) not in known])


def suspect_after(work: Work, loss: Tensor) -> None:
    """Call :func:`suspect` after the caller's backward; after a refusal, restore the gradients of all other tensors.

    Raises:
        ParameterError: The loss reaches trainable parameters that are not the engine's, or tensors of another pass.
    """
    if not checks_reach(work):
        return
    try:
        suspect(work, loss, work.loss_fn)
        known = set(map(id, work.outsiders))
        hidden = any(isinstance(node, BackwardCFunction) for node in graph(loss))  # may run a nested backward
        check_others(
            [
                (ref, grad, copy)
                for ref, grad, copy in work.step.gradients or ()
                if id(t := ref()) in known or (hidden and isinstance(t, nn.Parameter))
            ],
            work.loss_fn,
        )
    except ParameterError:
        _put_back(work.step.gradients or ())
        raise


def suspect(work: Work, loss: Tensor, loss_fn: Callable[..., Any] | None) -> None:
    """Add the tensors that a loss reaches besides the parameters to the suspects of the step.

    Raises:
        ParameterError: The loss reaches trainable parameters outside the engine, or a tensor that the loss of another
            pass has reached.
    """
    suspects = strangers(loss, work.params, work.model, loss_fn)
    earlier = {id(t) for ref, _ in work.step.suspects if (t := ref()) is not None}
    reached_twice = [t for ref, _ in suspects if (t := ref()) is not None and id(t) in earlier]
    if reached_twice:
        for ref, grad in work.step.suspects:
            if (t := ref()) is not None and any(t is other for other in reached_twice):
                t.grad = grad
        raise _refusal(reached_twice, loss_fn)
    work.step.suspect(suspects)


def inspect(work: Work, probe: Probe, loss: Tensor) -> None:
    """Call :func:`suspect` in the steps that check what losses reach.

    Raises:
        ParameterError: See :func:`suspect`.
    """
    if checks_reach(work):
        suspect(work, loss, probe.loss_fn or work.loss_fn)


def check_fresh(loss: Tensor, since: int) -> None:
    """Refuse a loss from values that were computed from the weights before they were displaced.

    Args:
        loss: The loss, with its graph.
        since: What :func:`now` was when the weights were displaced.

    Raises:
        LossError: It is such a loss.
    """
    old = _older(loss, since)
    if old is not None:
        raise LossError(
            "loss_fn must compute its loss from the weights as they are in each pass, but uses a value that was "
            f"computed from them before the pass ({old}), so it is that of other weights; compute it inside of forward "
            "or loss_fn, and keep no outputs, such as those of functools.lru_cache, from one pass to the next"
        )


@torch.enable_grad()
def now() -> int:
    """The number of the next node of a graph on this thread."""
    return int((torch.zeros((), requires_grad=True) * 1).grad_fn._sequence_nr()) + 1  # type: ignore[union-attr]


def _older(loss: Tensor, since: int) -> str | None:
    """The name of a node that was made before a number, other than a view, whose values are those of its base."""
    for node in graph(loss):
        if not hasattr(node, "variable") and node._sequence_nr() < since and node.name() not in _VIEWS:
            return str(node.name())
    return None


def any_gradient(params: Vec) -> bool:
    """Whether any parameter has a gradient."""
    return list(map(_GRAD, params)).count(None) < len(params)
