"""Computes the displacement of the base optimizer's next step without taking the step.

There are closed forms for SGD and Adam(W); a copy of any other optimizer takes the step. The optimizer itself is
unchanged: its state, step count and buffers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lowland.core import vec
from lowland.core.errors import UsageError
from lowland.core.precision import is_low, widened
from lowland.core.vec import Vec
from lowland.engine import adam
from lowland.engine.adam import entries, rate
from lowland.engine.inside import unwrap as unwrap
from lowland.executors.modes import SharedRNG


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``step`` requires a closure, as LBFGS does: it has a parameter without a default."""
    step = type(optimizer).step
    try:
        parameters = list(inspect.signature(getattr(step, "__wrapped__", step)).parameters.values())[1:]
    except (TypeError, ValueError):
        return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is inspect.Parameter.empty and p.kind not in variadic for p in parameters)


def each(
    compute: Callable[[Optimizer, Vec, Vec], Vec],
    optimizers: Sequence[Optimizer],
    params: Vec,
    grad: Vec,
    among: Sequence[bool] | None = None,
) -> Vec:
    """Compute a vector over all parameters, each optimizer for its own parameters.

    Args:
        compute: A function of optimizer, parameters and gradient, such as :func:`displacement`.
        optimizers: The base optimizers; no parameter is in two of them.
        params: The parameters.
        grad: The gradient, one tensor per parameter.
        among: Which parameters to compute; the others get zero, because an optimizer skips parameters without a
            gradient. None for all.

    Returns:
        One tensor per parameter.
    """
    if len(optimizers) == 1 and (among is None or all(among)):
        return compute(optimizers[0], params, grad)
    steps: dict[int, Tensor] = {}
    for optimizer in optimizers:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        index = [i for i, p in enumerate(params) if id(p) in own and (among is None or among[i])]
        if index:
            result = compute(optimizer, [params[i] for i in index], [grad[i] for i in index])
            steps.update(zip(index, result, strict=True))
    return [steps[i] if i in steps else vec.zeros([p])[0] for i, p in enumerate(params)]


def closed(optimizer: Optimizer) -> bool:
    """Whether :func:`displacement` has a closed form; otherwise a copy of the optimizer takes a step."""
    return type(optimizer) in FORMS and not _has_tensors(optimizer)


def _has_tensors(optimizer: Optimizer) -> bool:
    """Whether a hyperparameter besides ``lr`` is a tensor, as betas may be: torch computes with its precision."""
    values = [group.get(k) for group in optimizer.param_groups for k in NUMBERS]
    return any(isinstance(v, Tensor) or (type(v) is tuple and any(isinstance(x, Tensor) for x in v)) for v in values)


def displacement(optimizer: Optimizer, params: Vec, grad: Vec) -> Vec:
    """The change of ``params`` that ``optimizer.step()`` would make with the gradient ``grad``."""
    if not closed(optimizer):
        return dry_run(optimizer, params, grad)
    form = FORMS[type(optimizer)]
    return _computed(partial(form, kind=type(optimizer)), optimizer, params, grad)


def denominators(optimizer: Optimizer, params: Vec, grad: Vec) -> Vec:
    """What an optimizer with a second moment would divide by in its next step with the gradient ``grad``."""
    return _computed(partial(adam.denominators, kind=type(optimizer)), optimizer, params, grad)


def check_denominators(optimizer: Optimizer) -> None:
    """Refuse an optimizer without a second moment.

    Raises:
        UsageError: The optimizer is neither Adam nor AdamW, or its betas are tensors.
    """
    if type(optimizer) not in (Adam, AdamW):
        raise UsageError(
            f"the second moment is known for Adam and AdamW, but the optimizer is {type(optimizer).__name__}; use one "
            "of these with a geometry that reads the second moment, such as Preconditioned(), or use L2()"
        )
    if _has_tensors(optimizer):
        raise UsageError(
            f"the second moment is known for {type(optimizer).__name__} with numbers, but its betas, eps or weight "
            "decay are tensors; give numbers, such as betas=(0.9, 0.999), or use L2()"
        )


def _computed(form: Callable[..., Vec], optimizer: Optimizer, params: Vec, grad: Vec) -> Vec:
    """A vector that ``form`` computes from group, state, parameters and gradient, for each group on its own."""
    found: dict[int, Tensor] = {}
    for group, index in _by_group(optimizer, params):
        p, g = [params[i] for i in index], [grad[i] for i in index]
        with torch.no_grad():
            states = [optimizer.state.get(t, {}) for t in p]
            if is_low(p):
                p, states = widened(p), list(map(_widened, states))
            vectors = form(group, states, p, g)
        found.update(zip(index, vectors, strict=True))
    return [found[i] if i in found else vec.zeros([p])[0] for i, p in enumerate(params)]


def raw(optimizer: Optimizer, params: Vec, grad: Vec) -> Vec:
    """``-lr * grad`` with the learning rate of each group."""
    moves: dict[int, Tensor] = {}
    for group, index in _by_group(optimizer, params):
        sign = 1.0 if group.get("maximize") else -1.0
        moves.update(zip(index, vec.scale([grad[i] for i in index], sign * rate(group)), strict=True))
    return [moves[i] if i in moves else vec.zeros([p])[0] for i, p in enumerate(params)]


def momentum(optimizer: Optimizer, params: Vec) -> Vec:
    """A copy of SGD's momentum buffer or Adam's ``exp_avg``; zero for parameters without state.

    Raises:
        UsageError: The optimizer is another one, or SGD without momentum.
    """
    keys: dict[type, str] = {SGD: "momentum_buffer", Adam: "exp_avg", AdamW: "exp_avg"}
    key = keys.get(type(optimizer))
    if key is None:
        raise UsageError(
            f"momentum is known for SGD, Adam and AdamW, but the optimizer is {type(optimizer).__name__}; "
            "use one of these with a method that reads the momentum"
        )
    if key == "momentum_buffer" and not any(group["momentum"] for group in optimizer.param_groups):
        raise UsageError(
            "momentum must be > 0 for a method that reads it, but is 0 in the SGD at hand; give SGD(momentum=0.9)"
        )
    states = [{key: b} if (b := optimizer.state.get(p, {}).get(key)) is not None else {} for p in params]
    return widened(vec.clone(entries(states, key, params)))


def dry_run(optimizer: Optimizer, params: Vec, grad: Vec) -> Vec:
    """Let a copy of the optimizer take the step on copies of the parameters, and return their displacement.

    Raises:
        UsageError: The optimizer needs a closure, or its copy cannot take a step.
    """
    name = type(optimizer).__name__
    random_numbers = SharedRNG(params[0].device)
    if needs_closure(optimizer):
        raise UsageError(
            f"lookahead needs a step without a closure, but {name}.step calls one itself; use "
            'SAMPa(lookahead="raw") or SGD, Adam or AdamW'
        )
    random_numbers.rewind()  # saves them
    try:
        twin, copies = _twin(optimizer, params)
        for p, g in zip(copies, grad, strict=True):
            p.grad = g.to(p.dtype, copy=True)
        step = type(twin).step
        # The unwrapped step, because global step hooks must not see this step.
        getattr(step, "__wrapped__", step)(twin) if getattr(step, "hooked", False) else twin.step()
    except Exception as error:
        raise UsageError(
            f"lookahead needs a copy of the optimizer to step without a closure, but {name} fails ({error}); "
            'use SAMPa(lookahead="raw") or SGD, Adam or AdamW'
        ) from error
    finally:
        random_numbers.rewind()  # an optimizer may draw noise
    return vec.sub(widened([p.detach() for p in copies]), widened([p.detach() for p in params]))


def _twin(optimizer: Optimizer, params: Vec) -> tuple[Optimizer, list[Any]]:
    """A copy of the optimizer with copies of the parameters, without hooks and without the ``step`` of schedulers."""
    memo: dict[int, Any] = {}
    twin = object.__new__(type(optimizer))
    copied = {k: v for k, v in vars(optimizer).items() if k != "step" and not k.endswith("_hooks")}
    twin.__dict__.update(copy.deepcopy(copied, memo))
    twin.__dict__.update({k: type(v)() for k, v in vars(optimizer).items() if k.endswith("_hooks")})
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = None
    return twin, [memo[id(p)] for p in params]


def _by_group(optimizer: Optimizer, params: Vec) -> list[tuple[dict[str, Any], list[int]]]:
    """The groups with the indices of their parameters in ``params``; parameters that are not in it are ignored."""
    position = {id(p): i for i, p in enumerate(params)}
    return [
        (group, index)
        for group in optimizer.param_groups
        if (index := [position[id(p)] for p in group["params"] if id(p) in position])
    ]


def _sgd(group: dict[str, Any], states: list[dict[str, Any]], params: Vec, grad: Vec, kind: type) -> Vec:
    d = vec.scale(grad, -1.0) if group["maximize"] else grad
    d = vec.add(d, params, group["weight_decay"]) if group["weight_decay"] != 0 else vec.clone(d)
    if group["momentum"] != 0:
        buffer = vec.clone(d) if group["nesterov"] else d
        # A momentum buffer that does not exist yet starts as d, without dampening.
        old = {i: b for i, s in enumerate(states) if (b := s.get("momentum_buffer")) is not None}
        if old:
            updated = [buffer[i] for i in old]
            if group["dampening"] != 0:
                vec.scale_(updated, 1 - group["dampening"])
            vec.add_(updated, list(old.values()), group["momentum"])
        if group["nesterov"]:
            vec.add_(d, buffer, group["momentum"])
        else:
            d = buffer
    vec.scale_(d, -rate(group))
    return d


NUMBERS = ("betas", "eps", "weight_decay", "momentum", "dampening")  # hyperparameters in the closed forms
FORMS: dict[type, Callable[..., Vec]] = {SGD: _sgd, Adam: adam.step, AdamW: adam.step}


def _widened(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state with fp32 copies of tensors in bf16 or fp16."""
    return {k: widened([v])[0] if isinstance(v, Tensor) else v for k, v in state.items()}
