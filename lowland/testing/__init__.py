"""What every method promises, checked on any method: ``check_method(MyMethod())``.

The checks are those that lowland's own tests run on its methods. They train a tiny network in double precision, in less
than a second. For one test per check::

    @pytest.mark.parametrize(("name", "check"), lowland.testing.method_checks(MyMethod()))
    def test_my_method(name, check):
        check()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import nn
from torch.optim import Optimizer

from lowland.methods.base import Method
from lowland.testing.checks import CHECKS, Trial, trial_of

__all__ = ["CHECKS", "Trial", "check_method", "method_checks", "trial_of"]


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
