"""A check is a measurement with an expectation; a result says whether its figure meets the expectation."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

Figure: TypeAlias = float | Mapping[str, float] | None
Outcome = Literal["ok", "failed", "skipped", "measured"]
NO_GPU = (
    f"torch {torch.__version__} is built without CUDA"
    if torch.version.cuda is None
    else "torch finds no GPU on this machine"
)


@dataclass(frozen=True)
class Check:
    """A measurement that has not been made yet.

    Args:
        name: What is measured, such as a method and an optimizer.
        measure: Makes the measurement and returns its figure, several named figures, or None.
        expectation: What must hold, as a sentence; the measurement fails if it raises an error. Empty if nothing is
            expected of the figure.
        most: The largest figure that meets the expectation; None if ``measure`` raises an error where it is not met.
        unit: The unit of the figure.
        missing: What this machine lacks for the measurement; empty if it lacks nothing.
    """

    name: str
    measure: Callable[[], Figure]
    expectation: str = ""
    most: float | None = None
    unit: str = ""
    missing: str = ""

    def __call__(self) -> Result:
        """Make the measurement; an error is a failure."""
        if self.missing:
            return self.skip(self.missing)
        begin = time.perf_counter()
        try:
            figure = self.measure()
        except Exception as error:
            return self._result("failed", None, described(error), time.perf_counter() - begin)
        seconds = time.perf_counter() - begin
        if not self.expectation:
            return self._result("measured", figure, "", seconds)
        if self.most is None:
            return self._result("ok", figure, "", seconds)
        if not isinstance(figure, int | float):
            return self._result("failed", figure, "there is no figure to compare", seconds)
        if figure <= self.most:  # false for NaN
            return self._result("ok", figure, "", seconds)
        return self._result("failed", figure, f"the figure must be at most {self.most:g}", seconds)

    def skip(self, reason: str) -> Result:
        """The result of a measurement that is not made."""
        return self._result("skipped", None, reason, 0.0)

    def _result(self, outcome: Outcome, figure: Figure, reason: str, seconds: float) -> Result:
        return Result(self.name, outcome, figure, self.unit, self.expectation, reason, seconds)


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Args:
        name: The name of the check.
        outcome: "ok" or "failed" if something was expected, "measured" if not, "skipped" if no measurement was made.
        figure: The measured figure, or several by name.
        unit: The unit of the figure.
        expectation: What was expected.
        reason: Why the check failed or was skipped.
        seconds: How long the measurement took.
    """

    name: str
    outcome: Outcome
    figure: Figure
    unit: str
    expectation: str
    reason: str
    seconds: float


def described(error: BaseException) -> str:
    """An error's type and message, and the innermost line of lowland or of these checks that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/lowland/" in f.filename or "/tests/" in f.filename]
    place = f" ({'/'.join(ours[-1].filename.split('/')[-3:])}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}"
