"""What a run tells its caller while it trains: its progress, each epoch, and warnings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class LabWarning(UserWarning):
    """A problem that does not end a run, such as a damaged checkpoint."""


@dataclass(frozen=True)
class Update:
    """The progress of a run, for a display: the used fraction of the budget, and the last loss and metric."""

    run: str
    fraction: float
    step: int
    epoch: int
    loss: float
    score: str | None  # the headline metric on the test part, such as "accuracy 93.12 %"
    steps_per_second: float


Progress = Callable[[Update], None]
Watch = Callable[[dict[str, Any]], bool]  # gets each epoch line on the first rank; True prunes the run
