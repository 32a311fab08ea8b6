"""The next step of Adam and AdamW in closed form, and what it divides by."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from lowland.core import vec
from lowland.core.lagged import read
from lowland.core.shards import ORDINARY
from lowland.core.vec import Vec


def step(group: dict[str, Any], states: list[dict[str, Any]], params: Vec, grad: Vec, kind: type) -> Vec:
    """The displacement of the next step, for the parameters of one group."""
    beta1, _ = group["betas"]
    g = _decayed(group, params, grad, kind)
    means = vec.lerp(entries(states, "exp_avg", params), g, 1 - beta1)
    of_means, of_squares = _bias_corrections(group, states, params)
    steps = _divided(means, of_means)
    vec.div_(steps, _roots(group, states, params, g, of_squares))
    vec.scale_(steps, -rate(group))
    if group["weight_decay"] != 0 and _decoupled(group, kind):
        vec.add_(steps, params, -rate(group) * group["weight_decay"])
    return steps


def denominators(group: dict[str, Any], states: list[dict[str, Any]], params: Vec, grad: Vec, kind: type) -> Vec:
    """``sqrt(v) + eps`` with the second moment v after this gradient, for the parameters of one group."""
    _, of_squares = _bias_corrections(group, states, params)
    return _roots(group, states, params, _decayed(group, params, grad, kind), of_squares)


def _decoupled(group: dict[str, Any], kind: type) -> bool:
    return kind is AdamW or bool(group.get("decoupled_weight_decay", False))  # torch 2.6 has no such key


def _decayed(group: dict[str, Any], params: Vec, grad: Vec, kind: type) -> Vec:
    """The gradient that the moments get: with coupled weight decay, and against the sign if the step ascends."""
    g = vec.scale(grad, -1.0) if group["maximize"] else grad
    return (
        vec.add(g, params, group["weight_decay"]) if group["weight_decay"] != 0 and not _decoupled(group, kind) else g
    )


def _roots(
    group: dict[str, Any], states: list[dict[str, Any]], params: Vec, g: Vec, of_squares: list[float] | Tensor
) -> Vec:
    _, beta2 = group["betas"]
    roots = vec.scale(entries(states, "exp_avg_sq", params), beta2)
    vec.addcmul_(roots, g, g, 1 - beta2)
    if group["amsgrad"]:
        roots = vec.maximum(roots, entries(states, "max_exp_avg_sq", params))
    vec.sqrt_(roots)
    roots = _divided(roots, of_squares)
    vec.shift_(roots, group["eps"])
    return roots


def _bias_corrections(
    group: dict[str, Any], states: list[dict[str, Any]], params: Vec
) -> tuple[list[float] | Tensor, list[float] | Tensor]:
    """Adam's divisors of the means and of the roots of the squares, in its next step, one for each parameter.

    They are numbers where the host knows the step counts, as by default. Fused and capturable optimizers count on the
    device; then they are tensors, because the host would wait.
    """
    beta1, beta2 = group["betas"]
    counts = [torch.as_tensor(s.get("step", 0.0)).reshape(()) for s in states]
    if all(n.is_cpu and type(n) in ORDINARY for n in counts):
        numbers = [n + 1 for n in read(torch.stack(counts))]
        return [1 - beta1**n for n in numbers], [math.sqrt(1 - beta2**n) for n in numbers]
    device, dtype = params[0].device, vec.wide(params[0].device)  # float64 if possible, for an exact correction
    following = torch.stack([n.to(device=device, dtype=dtype, non_blocking=True) for n in counts]) + 1
    return 1 - beta1**following, torch.sqrt(1 - beta2**following)


def _divided(v: Vec, divisors: list[float] | Tensor) -> Vec:
    """Divide every tensor by its own divisor; in place if the divisors are numbers."""
    if isinstance(divisors, Tensor):
        return vec.stretch(v, divisors.reciprocal().to(v[0].dtype))
    vec.div_(v, divisors)
    return v


def rate(group: dict[str, Any]) -> float | Tensor:
    """The learning rate of a group."""
    lr: float | Tensor = group["lr"]
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def entries(states: list[dict[str, Any]], key: str, params: Vec) -> Vec:
    """One entry of the optimizer's state for each parameter; zeros where there is none yet."""
    missing = iter(vec.zeros([p for s, p in zip(states, params, strict=True) if key not in s]))
    return [s[key] if key in s else next(missing) for s in states]
