"""What every method and every task promises: ``check_method(MyMethod())`` and ``check_task(MyTask())``.

The checks are those that lowland's own tests run on its methods. They train a tiny network in double precision, in less
than a second. For one test per check::

    @pytest.mark.parametrize(("name", "check"), lowland.testing.method_checks(MyMethod()))
    def test_my_method(name, check):
        check()

The checks of a task are in :mod:`lowland.lab.testing`. They are loaded when they are asked for, so that a method can be
checked where the laboratory's packages are not installed.
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
        method: The method, complete; a training set has 20 examples, whose indices are the third entry of a batch.
        optimizer: Makes the optimizer for a network; by default SGD with momentum or, where the method refuses that,
            Adam with AMSGrad.

    Raises:
        AssertionError: It breaks a promise; the message names all that it breaks.
    """
    broken = []
    for name, check in method_checks(method, optimizer=optimizer):
        try:
            check()
        except Exception as error:
            broken.append(f"{name}: {type(error).__name__}: {error}")
    if broken:
        raise AssertionError(f"{method.kind} breaks {len(broken)} promises:\n  " + "\n  ".join(broken))


def method_checks(
    method: Method, *, optimizer: Callable[[nn.Module], Optimizer] | None = None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of :func:`check_method` one by one, as pairs of a name and a function without arguments."""
    trial = trial_of(method, optimizer)
    for check in CHECKS:
        yield check.__name__.removeprefix("check_"), partial(check, trial)
