"""optax.contrib.sam, from its docstring, and as much of jax and optax around it as the page's loop calls.

Parameters are dictionaries of tensors. A transformation is a pair of functions, ``init`` and ``update``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows it by

Tree = dict[str, Tensor]


def grad(function: Callable[..., Tensor]) -> Callable[..., Tree]:
    """jax.grad: with respect to the first argument."""

    def found(params: Tree, *rest: Any) -> Tree:
        return {k: g.detach() for k, g in torch.func.grad(function)(params, *rest).items()}

    return found


@dataclass
class Transformation:
    """``init(params)`` is a state, ``update(updates, state, params)`` gives new updates and the next state."""

    init: Callable[[Tree], Any]
    update: Callable[..., tuple[Tree, Any]]


def stateless(function: Callable[[Tree, Tree], Tree]) -> Transformation:
    return Transformation(lambda params: None, lambda updates, state, params: (function(updates, params), None))


def chain(*parts: Transformation) -> Transformation:
    def update(updates: Tree, states: list[Any], params: Tree) -> tuple[Tree, list[Any]]:
        new = []
        for part, state in zip(parts, states, strict=True):
            updates, after = part.update(updates, state, params)
            new.append(after)
        return updates, new

    return Transformation(lambda params: [part.init(params) for part in parts], update)


def add_decayed_weights(decay: float) -> Transformation:
    return stateless(lambda updates, params: {k: u + decay * params[k] for k, u in updates.items()})


def normalize() -> Transformation:
    """``g / ||g||``, without a number that is added to the norm."""

    def unit(updates: Tree, params: Tree) -> Tree:
        norm = torch.cat([u.flatten() for u in updates.values()]).norm()
        return {k: u / norm for k, u in updates.items()}

    return stateless(unit)


def sgd(learning_rate: float, momentum: float = 0.0) -> Transformation:
    def update(updates: Tree, trace: Tree, params: Tree) -> tuple[Tree, Tree]:
        trace = {k: u + momentum * trace[k] for k, u in updates.items()}
        return {k: -learning_rate * v for k, v in trace.items()}, trace

    return Transformation(lambda params: {k: torch.zeros_like(p) for k, p in params.items()}, update)


def apply_updates(params: Tree, updates: Tree) -> Tree:
    return {k: p + updates[k] for k, p in params.items()}


def softmax_cross_entropy_with_integer_labels(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def sam(
    optimizer: Transformation, adv_optimizer: Transformation, sync_period: int = 2, opaque_mode: bool = False
) -> Transformation:
    """``sync_period - 1`` steps uphill with ``adv_optimizer``, then one of ``optimizer`` from where they began.

    In opaque mode one call of ``update`` does all of it; else one call is one pass, and the caller sees every point.
    """

    def init(params: Tree) -> dict[str, Any]:
        return {"t": 0, "start": params, "outer": optimizer.init(params), "inner": adv_optimizer.init(params)}

    def uphill(updates: Tree, state: dict[str, Any], params: Tree) -> tuple[Tree, Any]:
        found, inner = adv_optimizer.update(updates, state["inner"], params)
        return {k: -u for k, u in found.items()}, inner

    def opaque(updates: Tree, state: dict[str, Any], params: Tree, *, grad_fn: Any) -> tuple[Tree, Any]:
        state, there = {**state, "inner": adv_optimizer.init(params)}, params
        for number in range(sync_period - 1):
            up, inner = uphill(updates, state, there)
            state, there = {**state, "inner": inner}, apply_updates(there, up)
            updates = grad_fn(there, number)
        updates, outer = optimizer.update(updates, state["outer"], params)
        return updates, {**state, "outer": outer}

    def transparent(updates: Tree, state: dict[str, Any], params: Tree) -> tuple[Tree, Any]:
        start = params if state["t"] == 0 else state["start"]
        if state["t"] < sync_period - 1:
            updates, inner = uphill(updates, state, params)
            return updates, {**state, "t": state["t"] + 1, "start": start, "inner": inner}
        updates, outer = optimizer.update(updates, state["outer"], start)
        back = {k: start[k] - params[k] + u for k, u in updates.items()}
        return back, {"t": 0, "start": start, "outer": outer, "inner": adv_optimizer.init(start)}

    return Transformation(init, opaque if opaque_mode else transparent)


contrib = sys.modules[__name__]  # `from optax import contrib`
