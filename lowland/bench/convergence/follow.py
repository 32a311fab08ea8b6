"""Follows a method on a problem: distances, gradients, and the Lyapunov function after every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim import SGD

import lowland
from lowland.bench.convergence.naive import OptSAM, RandSAM
from lowland.bench.convergence.problems import Problem, Weights
from lowland.bench.convergence.theorem import Kind
from lowland.methods import make

FIRST = 1  # the steps that are not counted: SAMPa's first step is a plain step, which gives x_1 and y_1 = x_0
FAR = 1e6  # a trajectory that is so many times farther than it began, or than the radius, has diverged


@dataclass(frozen=True)
class Contestant:
    """A method of the study.

    Args:
        method: The method.
        kind: The theorem about it; None without one.
        random: Whether it draws random numbers.
    """

    method: lowland.Method
    kind: Kind | None = None
    random: bool = False


def contestants(rho: float) -> Mapping[str, Contestant]:
    """The methods of the study by name, all with the same radius."""
    return {
        "plain": Contestant(lowland.Plain(), "plain"),
        "sam": Contestant(lowland.SAM(rho=rho), "sam"),
        "sampa:lam=0": Contestant(make("sampa:lam=0", rho=rho), "sampa"),
        "sampa:lam=0.2": Contestant(make("sampa:lam=0.2", rho=rho)),
        "async-sam:share=1": Contestant(lowland.AsyncSAM(rho=rho, share=1.0)),
        "OptSAM": Contestant(OptSAM(rho=rho)),
        "RandSAM": Contestant(RandSAM(rho=rho), random=True),
    }


@dataclass(frozen=True)
class Trajectory:
    """A trajectory, from the first counted step on.

    Attributes:
        distances: ``||x_t - x*||``.
        squares: ``||g(x_t)||^2``, of the gradient of the mean loss over all examples.
        values: The Lyapunov function: SAMPa's ``V_t`` for SAMPa, else the loss.
        diverged: Whether it ends early, too far away.
    """

    distances: list[float]
    squares: list[float]
    values: list[float]
    diverged: bool

    @property
    def settled(self) -> float:
        """The root mean square of the distance over the last quarter."""
        last = self.distances[-max(1, len(self.distances) // 4) :]
        return math.sqrt(sum(d * d for d in last) / len(last))

    @property
    def mean_square(self) -> float:
        """The mean of ``||g(x_t)||^2`` over all steps, that is, without the last point."""
        return math.fsum(self.squares[:-1]) / (len(self.squares) - 1)


def follow(problem: Problem, method: lowland.Method, lr: float, steps: int, seed: int = 0) -> Trajectory:
    """Train with plain SGD of one constant step by an :class:`lowland.Engine`; stop where it diverges.

    Args:
        problem: The problem.
        method: The method.
        lr: The step.
        steps: Steps, without the first one, which is not counted.
        seed: The seed of the batches and of the method's random choices.
    """
    model = Weights(problem.start)
    optimizer = SGD(model.parameters(), lr=lr)
    engine = lowland.Engine(method, model, optimizer, problem.loss_fn, seed=seed)
    distances: list[float] = []
    squares: list[float] = []
    values: list[float] = []
    far = FAR * (torch.linalg.vector_norm(problem.start - problem.minimizer).item() + float(method.rho))  # type: ignore[arg-type]
    for number, batch in enumerate(problem.batches(seed), 1):
        engine.backward(batch)
        optimizer.step()
        optimizer.zero_grad()
        value, gradient = problem.at(model.w)
        if isinstance(method, lowland.SAMPa):  # memory has g(y_t), of the batch at hand
            difference = gradient - engine.memory["grad_y"][0]
            value += (1 - lr * problem.smoothness) / 2 * difference.square().sum().item()
        distances.append(torch.linalg.vector_norm(model.w.detach() - problem.minimizer).item())
        squares.append(gradient.square().sum().item())
        values.append(value)
        if number == steps + FIRST or not distances[-1] <= far:
            break
    return Trajectory(distances, squares, values, diverged=not distances[-1] <= far)


def slope(places: Sequence[float], values: Sequence[float]) -> float | None:
    """The exponent p of the least-squares fit ``value = a * place^p``; None unless two positive values are there."""
    if len(values) < 2 or min(values) <= 0:
        return None
    return float(np.polyfit(np.log(places), np.log(values), 1)[0])


def decade(squares: Sequence[float]) -> float | None:
    """The exponent of T in the mean of the first T squares, fitted at up to 20 places of the last decade."""
    means = np.cumsum(squares) / np.arange(1, len(squares) + 1)
    places = spread(max(1, len(squares) // 10), len(squares), 20)
    return slope(places, [float(means[place - 1]) for place in places])


def spread(first: int, last: int, count: int) -> list[int]:
    """Up to ``count`` whole numbers from ``first`` to ``last``, with nearly equal ratios."""
    return sorted({round(value) for value in np.geomspace(first, last, count)})


def floor(method: str, lr: float, rho: float) -> float | None:
    """The root mean square of the distance to which a method settles on ``||x||^2``; None without a closed form.

    Along the ray through the start, a step of SAM is ``x' = (1 - 2 lr) x - 2 lr rho sign(x)``, whose only cycle is r,
    -r. For SAMPa and AsyncSAM the sign is that of an earlier point: there are several cycles, and the start decides.
    For OptSAM and RandSAM see their classes.

    Args:
        method: The name of a contestant.
        lr: The step, < 1/2.
        rho: The radius.
    """
    if lr >= 0.5:
        return None
    forms = {"sam": lr * rho / (1 - lr), "OptSAM": rho, "RandSAM": rho * math.sqrt(lr / (1 - lr))}
    return forms.get(method)
