"""The record of a sweep: one JSON file, which is replaced after each trial, and its contents as dataclasses."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lowland.core.errors import ArgumentError, DataError
from lowland.runs.contents import checked
from lowland.runs.record import MetricRecord

FORMAT = 1
Outcome = Literal["finished", "pruned", "diverged", "refused", "failed", "running"]


@dataclass(frozen=True, kw_only=True)
class ParameterRecord:
    """A field that a sweep searches.

    Args:
        name: Its name, such as ``rho``, ``inner.rho``, ``lr`` or ``task.noise``.
        place: What the field belongs to: ``method``, ``recipe`` or ``task``.
        text: The range as it was written, such as ``0.02..0.5:log``.
        low: The lower end of a range; None for choices.
        high: The upper end of a range; None for choices.
        log: Whether the range is searched on a logarithmic scale.
        choices: The choices, or the points of a grid, as text; empty for a range.
    """

    name: str
    place: str
    text: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return not self.choices or all(number(choice) is not None for choice in self.choices)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial: a point of the search, and what came of it.

    Args:
        number: Its number in the study, from 0.
        outcome: ``finished``; ``pruned`` before its end; ``diverged``; ``refused`` by the method; ``failed`` because
            its validation metric is not finite; or ``running``.
        values: The values of the searched fields as text, by name.
        text: The contestant with these values.
        task: The task with these values.
        score: The validation metric, the mean over the seeds; None unless the trial finished.
        scores: The validation metric of each seed that was trained.
        loss: The validation loss where the score was read, the mean over the seeds; None unless the trial finished,
            and in older records.
        epochs: Epochs and validation metric of the first seed, as pruning saw them.
        runs: The names of the run folders.
        message: Why the trial was refused, or failed; empty otherwise.
    """

    number: int
    outcome: Outcome
    values: Mapping[str, str]
    text: str
    task: str
    score: float | None = None
    scores: tuple[float | None, ...] = ()
    loss: float | None = None
    epochs: tuple[tuple[int, float], ...] = ()
    runs: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class ContestantRecord:
    """The search of one contestant.

    Args:
        text: The contestant with its ranges.
        study: The name of its Optuna study.
        total: The number of trials that it gets.
        parameters: The searched fields.
        trials: The trials by number.
        importance: The share of each field in the variation of the metric, by name; empty if it was not estimated.
    """

    text: str
    study: str
    total: int
    parameters: tuple[ParameterRecord, ...]
    trials: tuple[TrialRecord, ...]
    importance: Mapping[str, float]

    def finished(self) -> list[TrialRecord]:
        """The trials that have a score, by number."""
        return [trial for trial in self.trials if trial.score is not None]

    def best(self, higher: bool) -> TrialRecord | None:
        """The trial with the best score; of equal ones that with the lowest loss, then the first; None without any."""
        sign = 1 if higher else -1

        def rank(trial: TrialRecord) -> tuple[float, float, int]:
            return sign * (trial.score or 0.0), -math.inf if trial.loss is None else -trial.loss, -trial.number

        return max(self.finished(), key=rank, default=None)

    def count(self, outcome: Outcome) -> int:
        """The number of trials with this outcome."""
        return sum(trial.outcome == outcome for trial in self.trials)

    def different(self) -> int:
        """The number of different points among the trials."""
        return len({tuple(sorted(trial.values.items())) for trial in self.trials})


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep.

    Args:
        time: When the record was written, in UTC.
        command: The command line, or empty.
        task: The task, with its ranges.
        model: The model.
        metric: The metric that decides.
        validation: The held-out fraction of the training part; 0 for a validation part of the data.
        select: ``last``, or ``best`` for the metric of the best epoch on the validation part.
        seeds: The seeds of each trial.
        sampler: The sampler, in words.
        pruner: The pruner, in words.
        budget: The kind and the limit of the budget of each run.
        contestants: The contestants, in order.
        comparison: The command lines that compare the best trials on the test set.
    """

    time: str
    command: str
    task: str
    model: str
    metric: MetricRecord
    validation: float
    select: str
    seeds: tuple[int, ...]
    sampler: str
    pruner: str
    budget: Mapping[str, Any]
    contestants: tuple[ContestantRecord, ...]
    comparison: tuple[str, ...] = ()

    def winners(self) -> list[tuple[ContestantRecord, TrialRecord]]:
        """The contestants that have a best trial, with this trial, the best first."""
        pairs = [(c, best) for c in self.contestants if (best := c.best(self.metric.higher)) is not None]
        return sorted(pairs, key=lambda pair: (-1 if self.metric.higher else 1) * (pair[1].score or 0.0))

    def complete(self) -> bool:
        """Whether every contestant has all its trials, and none is running."""
        return all(len(c.trials) >= c.total and not c.count("running") for c in self.contestants)


def write(record: SweepRecord, path: Path) -> None:
    """Replace the file of a record; after an error or a kill the old file is unchanged.

    Raises:
        ArgumentError: The folder cannot be written to.
    """
    content = json.dumps(
        {"kind": "sweep", "format": FORMAT} | asdict(record), ensure_ascii=False, allow_nan=False, indent=1
    )
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content + "\n")
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(draft, 0o666 & ~mask)  # only the owner can read a file of mkstemp
        os.replace(draft, path)
    except OSError as error:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)
        raise ArgumentError(
            f"out must be a folder that can be written to, but {path.parent} cannot be ({error.strerror}); "
            "choose another --out"
        ) from None


def read(path: str | Path) -> SweepRecord:
    """Read the file of a record.

    Raises:
        DataError: The file is missing, or is no record of a sweep.
    """
    try:
        loaded = json.loads(Path(path).read_text(encoding="utf-8"))
        if loaded.pop("kind") != "sweep" or loaded.pop("format") != FORMAT:
            raise ValueError(f"its kind and format must be sweep and {FORMAT}")
        return _record(loaded)
    except OSError as error:
        raise DataError(f"no record of a sweep at {path} ({error.strerror}); name a sweep-….json") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is no record of a sweep: {error}; name a sweep-….json of lowland sweep") from error


def _record(loaded: dict[str, Any]) -> SweepRecord:
    metric = checked(MetricRecord(**loaded["metric"]))
    contestants = tuple(map(_contestant, loaded["contestants"]))
    lists = {name: tuple(loaded[name]) for name in ("seeds", "comparison")}
    return checked(SweepRecord(**loaded | lists | {"metric": metric, "contestants": contestants}))


def _contestant(loaded: dict[str, Any]) -> ContestantRecord:
    parameters = tuple(
        checked(ParameterRecord(**each | {"choices": tuple(each["choices"])})) for each in loaded["parameters"]
    )
    trials = tuple(map(_trial, loaded["trials"]))
    return checked(ContestantRecord(**loaded | {"parameters": parameters, "trials": trials}))


def _trial(loaded: dict[str, Any]) -> TrialRecord:
    lists = {name: tuple(loaded[name]) for name in ("scores", "runs")}
    return checked(TrialRecord(**loaded | lists | {"epochs": tuple(map(tuple, loaded["epochs"]))}))


def number(text: str) -> float | None:
    """The finite number that a text is; None if it is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
