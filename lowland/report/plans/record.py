"""The record of a plan: what the page is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar

from lowland.runs.contents import contents, damaged, typed

COMMAND, VERSION = "lowland plan", 1
T = TypeVar("T")
Bound: TypeAlias = Literal["passes", "busy", "exchange", "own"]


@dataclass(frozen=True, kw_only=True)
class LayoutRecord:
    """How the passes of a step are divided.

    Attributes:
        probe: The groups of ranks that divide the probes of an ask.
        data: The parts of the batch in each group.
        micro_batch: The most examples in one forward pass; None does not cut.
    """

    POSITIVE: ClassVar[Sequence[str]] = ("probe", "data", "micro_batch")

    probe: int
    data: int
    micro_batch: int | None

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.probe * self.data


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """What a step of a method is predicted to take in a layout.

    Attributes:
        method: The method as text.
        layout: The layout.
        shown: The layout in words.
        examples: The examples of a step.
        seconds: The mean time of a step.
        error: The standard error of this time, as a fraction of it; None where it is not known.
        passes: Seconds of the passes that follow each other, as one device takes them alone.
        busy: Seconds more, because the other ranks compute at the same time.
        exchange: Seconds of exchanges between ranks.
        own: Seconds of the method's own arithmetic and of the update.
        bytes: Bytes of gradients that the first rank sends in a step; None where it is not modeled.
        memory: The peak of a rank's memory in bytes; None where it was not measured.
        bound: What a step spends most of its time on beside its passes, or "passes".
    """

    POSITIVE: ClassVar[Sequence[str]] = ("examples", "seconds")
    NOT_NEGATIVE: ClassVar[Sequence[str]] = ("error", "bytes", "memory")

    method: str
    layout: LayoutRecord
    shown: str
    examples: int
    seconds: float
    error: float | None
    passes: float
    busy: float
    exchange: float
    own: float
    bytes: float | None
    memory: float | None
    bound: Bound

    @property
    def speed(self) -> float:
        """Examples in a second."""
        return self.examples / self.seconds


@dataclass(frozen=True, kw_only=True)
class LineRecord:
    """Seconds of a pass against its examples.

    Attributes:
        base: Seconds without examples.
        slope: Seconds for each example.
        error: The standard error of a time on the line, as a fraction of it; None where it is not known.
    """

    NOT_NEGATIVE: ClassVar[Sequence[str]] = ("error",)

    base: float
    slope: float
    error: float | None


@dataclass(frozen=True, kw_only=True)
class RatesRecord:
    """What passes take in one layout.

    Attributes:
        layout: The layout.
        lines: The lines by the kind of pass, such as "again" for a gradient at the weights.
        once: Seconds of a step beyond its passes and the method's own work.
        part: The time of a gradient of half of the tensors, as a fraction of one of all tensors.
        alone: Whether every rank trains for itself.
    """

    layout: LayoutRecord
    lines: Mapping[str, LineRecord]
    once: float
    part: float
    alone: bool


@dataclass(frozen=True, kw_only=True)
class SurveyRecord:
    """What one number of ranks was measured to take.

    Attributes:
        ranks: The number of ranks.
        examples: The examples of a step.
        parameters: The bytes of the parameters.
        quiet: The rates of one device alone.
        busy: The rates of ranks that train at the same time, each for itself.
        rates: The rates of every layout.
    """

    POSITIVE: ClassVar[Sequence[str]] = ("ranks", "examples", "parameters")

    ranks: int
    examples: int
    parameters: int
    quiet: RatesRecord
    busy: RatesRecord
    rates: list[RatesRecord]


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """A plan of a training.

    Attributes:
        task: The task as text.
        model: The model as text.
        recipe: The recipe's values.
        machine: The machine's properties by name.
        seconds: About how long the measuring was allowed to take.
        predictions: The predictions, the fastest first.
        surveys: What was measured, one for each number of ranks.
        left_out: Methods that cannot train here, each with the reason.
        room: The bytes of memory that are free, for all ranks of a device together; None where it is not known.
        why: For every method one sentence about its fastest layout.
        runs: Sentences about runs of a comparison; none without runs.
        notes: What the plan has not planned, or knows less well.
    """

    POSITIVE: ClassVar[Sequence[str]] = ("seconds",)

    task: str
    model: str
    recipe: Mapping[str, Any]
    machine: Mapping[str, Any]
    seconds: float
    predictions: list[PredictionRecord]
    surveys: list[SurveyRecord]
    left_out: Mapping[str, str]
    room: int | None
    why: Mapping[str, str]
    runs: list[str]
    notes: list[str]

    def fastest(self) -> dict[str, PredictionRecord]:
        """The fastest prediction of every method, the fastest method first."""
        found: dict[str, PredictionRecord] = {}
        for one in self.predictions:
            found.setdefault(one.method, one)
        return found

    @classmethod
    def read(cls, path: Path) -> tuple[Self, dict[str, Any]]:
        """Read a record.

        Returns:
            The record, and the file's contents.

        Raises:
            ArgumentError: The file cannot be read.
            StateError: It is no record of this version.
        """
        entries = contents(path, COMMAND, VERSION)
        try:
            (made := cls.of(entries)).check()
            return made, entries
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise damaged(path, COMMAND, error) from None

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Self:
        """The record from the contents of its file.

        Raises:
            KeyError: An entry is missing.
            TypeError: An entry is of another type.
        """
        predictions = [
            _made(PredictionRecord, {**one, "layout": _made(LayoutRecord, one["layout"])})
            for one in entries["predictions"]
        ]
        surveys = [
            _made(
                SurveyRecord,
                {
                    **each,
                    "quiet": _rates(each["quiet"]),
                    "busy": _rates(each["busy"]),
                    "rates": [_rates(one) for one in each["rates"]],
                },
            )
            for each in entries["surveys"]
        ]
        predictions.sort(key=lambda one: round(one.seconds, 9))
        if not predictions or not surveys:
            raise TypeError("it has no predictions")
        return _made(cls, {"notes": [], **entries, "predictions": predictions, "surveys": surveys})

    def check(self) -> None:
        """Refuse a record that lacks what the page shows.

        Raises:
            TypeError: It does.
        """
        unsaid = [name for name in self.fastest() if name not in self.why]
        if unsaid:
            raise TypeError(f"why has no sentence about {', '.join(unsaid)}")
        rates = [one for each in self.surveys for one in (each.quiet, each.busy, *each.rates)]
        if not all("again" in one.lines for one in rates):
            raise TypeError("a survey has no line of a gradient at the weights")
        if not {"lowland", "torch"} <= set(self.machine):
            raise TypeError("machine has no versions of lowland and torch")


def _rates(data: Mapping[str, Any]) -> RatesRecord:
    lines = {kind: _made(LineRecord, line) for kind, line in data["lines"].items()}
    return _made(RatesRecord, {**data, "layout": _made(LayoutRecord, data["layout"]), "lines": lines})


def _made(kind: type[T], entry: Mapping[str, Any]) -> T:
    """A dataclass from the entries that it has fields for.

    Raises:
        KeyError: A field has no entry.
        TypeError: An entry is of another type.
    """
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**typed(kind, {name: entry[name] for name in names}))
