"""Checks of methods and tasks: ``check_method(MyMethod())`` and ``check_task(MyTask())``.

lowland's own tests run the same checks on its methods. They train a tiny network in double precision, in less than a
second. For one test per check::

    @pytest.mark.parametrize(("name", "check"), lowland.testing.method_checks(MyMethod()))
    def test_my_method(name, check):
        check()

The checks of a task are in :mod:`lowland.lab.testing`. They are imported at their first use, so that a method can be
checked without the packages of the laboratory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from lowland.methods.base import Method
from lowland.testing.checks import CHECKS, Trial, trial_of

if TYPE_CHECKING:
    from lowland.lab.testing import check_task, task_checks

__all__ = ["CHECKS", "Trial", "check_method", "check_task", "method_checks", "task_checks", "trial_of"]


def __getattr__(name: str) -> Any:
    if name not in ("check_task", "task_checks"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("lowland.lab.testing"), name)


def check_method(method: Method, *, optimizer: Callable[[nn.Module], Optimizer] | None = None) -> None:
    """Run all checks on a method.

    Args:
        method: The method, with all fields set. The training set has 20 examples, whose positions are the third entry
            of a batch.
        optimizer: A function that makes the optimizer for a network; by default SGD with momentum, or Adam with AMSGrad
            if the method refuses SGD.

    Raises:
        AssertionError: A check failed; the message lists all failed checks.
    """
    failed = []
    for name, check in method_checks(method, optimizer=optimizer):
        try:
            check()
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    if failed:
        raise AssertionError(f"{method.kind} breaks {len(failed)} promises:\n  " + "\n  ".join(failed))


def method_checks(
    method: Method, *, optimizer: Callable[[nn.Module], Optimizer] | None = None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks of :func:`check_method` as pairs of a name and a function without arguments."""
    trial = trial_of(method, optimizer)
    for check in CHECKS:
        yield check.__name__.removeprefix("check_"), partial(check, trial)
