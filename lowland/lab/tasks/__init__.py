"""Classification tasks: ``load("digits")``, ``load("cifar10", data=..., noise=0.4)``.

A new task is a module with a function from a data folder to a ``Task``, and a line in ``TASKS``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lowland.core.errors import UnknownNameError
from lowland.lab.data.images import Augmentation
from lowland.lab.data.noise import NoiseKind, noisy
from lowland.lab.task import Task
from lowland.lab.tasks import cifar, digits, fashion

__all__ = ["TASKS", "Augmentation", "NoiseKind", "Task", "load", "noisy"]

TASKS: dict[str, Callable[[Path | None], Task]] = {
    "digits": digits.load,
    "fashion-mnist": fashion.load,
    "cifar10": cifar.load_cifar10,
    "cifar100": cifar.load_cifar100,
}


def load(
    name: str,
    *,
    data: Path | None = None,
    noise: float = 0.0,
    noise_kind: NoiseKind = "symmetric",
    noise_seed: int = 0,
) -> Task:
    """The task of that name, with label noise if asked for.

    Args:
        name: A key of ``TASKS``.
        data: Folder of the upstream files; None is the environment variable ``LOWLAND_DATA``.
        noise: Share of wrong training labels, in [0, 1); see ``noisy`` for what it counts.
        noise_kind: "symmetric" or "asymmetric".
        noise_seed: Which labels are wrong; the same for every method, so that they can be compared.

    Raises:
        UnknownNameError: No such task.
        DataError: Its files are missing or not the upstream ones.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    return noisy(TASKS[name](data), noise, noise_kind, noise_seed)
