"""What every integration refuses before it makes an engine; needs no framework."""

from __future__ import annotations

import pytest

import lowland
from lowland.core.errors import ArgumentError
from lowland.integrations import refusals


@pytest.mark.parametrize(
    ("method", "name", "needed"),
    [
        (lowland.AUSAM(examples=8), "AUSAM", "a loss for every example"),
        (lowland.BiSAM(), "BiSAM", "a loss for every example"),
        (lowland.ESAM(), "ESAM", "a loss for every example"),
        (lowland.KSAM(), "KSAM", "a loss for every example"),
        (lowland.FunctionalSAM(), "FunctionalSAM", "outputs and criterion apart"),
        (lowland.Late(inner=lowland.FunctionalSAM(), start=0.5), "FunctionalSAM", "outputs and criterion apart"),
    ],
)
def test_a_method_that_needs_more_than_a_mean_is_refused_by_name(
    method: lowland.Method, name: str, needed: str
) -> None:
    with pytest.raises(ArgumentError, match=rf"all that training_step gives, but {name} needs {needed}; take another"):
        refusals.check_mean(method, "training_step")


def test_a_method_with_a_mean_is_not_refused() -> None:
    for method in (lowland.SAM(), lowland.SAMPa(), lowland.Late(inner=lowland.LookSAM(), start=0.5)):
        refusals.check_mean(method, "training_step")
