"""Checks what a method's plan returns, what it leaves in memory, and what its probes ask for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import FrozenInstanceError
from typing import Any

import torch
from torch import Tensor

from lowland.core.errors import UsageError
from lowland.core.precision import is_low, of_vectors, widened
from lowland.core.probe import Probe
from lowland.core.vec import Vec
from lowland.methods.base import Method


def result(kind: str, value: Any, params: Vec, *, each: bool = True) -> tuple[Tensor, Vec]:
    """Check the value that a plan has returned.

    Args:
        kind: The name of the method.
        value: The value.
        params: The parameters, one for each tensor of the gradient.
        each: Also compare the shape, dtype and device of every tensor. This costs a microsecond per tensor, so only
            some steps ask for it.

    Returns:
        The loss, detached, shape ``()``, and the gradient, a list with one tensor per parameter.

    Raises:
        UsageError: The value is not a loss of shape ``()`` and one tensor per parameter, in its shape and dtype.
    """
    if not isinstance(value, tuple) or len(value) != 2:
        shown = "nothing" if value is None else f"a {type(value).__name__} of {_size(value)}"
        raise UsageError(
            f"plan must return a tuple (loss, gradient), but that of {kind} returned {shown}; end it with "
            "return here.loss, here.grad"
        )
    loss, grad = value
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        raise UsageError(
            f"plan must return a loss of shape () first, but that of {kind} returned {_shown(loss)}; return "
            "(loss, gradient) with the loss of a reading, such as here.loss"
        )
    if not isinstance(grad, Sequence) or isinstance(grad, str) or len(grad) != len(params):
        raise UsageError(
            f"plan must return one tensor for each of {len(params)} parameters, but that of {kind} returned "
            f"{_shown(grad)}; return a vector such as here.grad"
        )
    for i, (g, p) in enumerate(zip(grad, params, strict=True) if each else ()):
        fits = isinstance(g, Tensor) and g.shape == p.shape and g.dtype == of_vectors(p.dtype) and g.device == p.device
        if not fits or g.layout is not torch.strided:
            raise UsageError(
                f"plan must return tensors like the parameters, but that of {kind} returned {_shown(g)} for parameter "
                f"{i}, which needs {_shown(p, of_vectors(p.dtype))}; compute with lowland.vec, which keeps shapes"
            )
    return loss.detach(), grad if isinstance(grad, list) else list(grad)


def unasked(kind: str) -> UsageError:
    """The error for a plan that has returned without asking for a reading."""
    return UsageError(
        f"plan must ask for at least one reading, but that of {kind} returned without one, so its result cannot depend "
        "on the batch; write: here = yield Probe(batch)"
    )


def explain(method: Method, memory: Mapping[str, Any], error: KeyError | FrozenInstanceError) -> None:
    """Raise an error with a remedy if a plan misuses its memory or its method; return for other errors.

    Raises:
        UsageError: The plan reads an entry that memory does not have, or sets a field of its method.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    reads = trace is not None and "memory" in trace.tb_frame.f_code.co_names
    if isinstance(error, FrozenInstanceError):
        raise UsageError(
            f"a method must stay as it was made, but the plan of {method.kind} sets one of its attributes ({error}); "
            "what changes from step to step goes into memory: let init return it, and write engine.memory[name] = value"
        ) from error
    if reads and error.args and isinstance(error.args[0], str) and error.args[0] not in memory:
        raise UsageError(
            f"memory must have the entries that init made, {sorted(memory)}, but the plan of {method.kind} reads "
            f"{error.args[0]!r}; let init return it: {{{error.args[0]!r}: vec.zeros(params)}}"
        ) from error


def memory(kind: str, value: Any, params: Vec) -> dict[str, Any]:
    """Check the memory that a method's ``init`` has returned, and return it; vectors of bf16 or fp16 become fp32.

    Raises:
        UsageError: The memory is not a dict with strings as keys.
    """
    if type(value) is not dict or not all(isinstance(key, str) for key in value):
        raise UsageError(
            f"init must return a dict from names to values, but that of {kind} returned {_shown(value)}; return {{}} "
            "if the method has no memory"
        )
    return value | {k: widened(value[k]) for k in vector_keys(value, params)} if is_low(params) else value


def vector_keys(memory: dict[str, Any], params: Vec) -> frozenset[str]:
    """The keys of the vectors in a method's first memory. In later memory, a batch could look like a vector."""
    shapes = [p.shape for p in params]
    return frozenset(
        k
        for k, v in memory.items()
        if isinstance(v, list) and all(isinstance(t, Tensor) for t in v) and [t.shape for t in v] == shapes
    )


def same_keys(kind: str, before: Collection[str], after: Mapping[str, Any]) -> None:
    """Refuse a plan that has added or removed an entry of memory, because its checkpoint could not be loaded.

    Raises:
        UsageError: The keys differ, or memory is not a dict.
    """
    if type(after) is not dict:
        raise UsageError(
            f"memory must stay a dict, but the plan of {kind} has replaced it by {_shown(after)}; write "
            "engine.memory[name] = value"
        )
    if len(before) != len(after) or any(key not in before for key in after):
        changed = sorted(set(before) ^ set(after), key=str)
        value = "None" if not isinstance(after.get(changed[0]), list) else "vec.zeros(params)"
        raise UsageError(
            f"memory must have the entries that init made, but the plan of {kind} has added or removed {changed}, so "
            f"a checkpoint could not be loaded; let init return them: {{{changed[0]!r}: {value}}}"
        )


def chosen(kind: str, probe: Probe, params: Vec) -> None:
    """Refuse a probe whose ``wrt`` does not fit the parameters.

    Raises:
        UsageError: ``wrt`` has another length than the parameters.
    """
    if probe.wrt is not None and len(probe.wrt) != len(params):
        raise UsageError(
            f"wrt must hold one bool for each of {len(params)} parameters, but the plan of {kind} gave "
            f"{len(probe.wrt)}; write [name in chosen for name in engine.names]"
        )


def _size(value: Any) -> str:
    return f"{len(value)} entries" if hasattr(value, "__len__") and not isinstance(value, Tensor) else "one value"


def _shown(value: Any, dtype: torch.dtype | None = None) -> str:
    if isinstance(value, Tensor):
        return f"a {dtype or value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    return f"a {type(value).__name__} of {_size(value)}"
