"""The record of simulated trainings: what the page is drawn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

from lowland.runs.contents import contents, damaged, exact

COMMAND, VERSION = "lowland simulate", 1

Kept: TypeAlias = Literal["per device", "global"]
"""Which batch is equal for all numbers of devices."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method on a mesh.

    Attributes:
        method: Its name.
        kept: Which batch does not change with the number of devices.
        devices: The number of devices.
        probe: Groups that divide probes.
        data: Devices of a group.
        examples: Examples of a step, of all devices.
        compute: Seconds of passes in a step, in closed form.
        exchange: Seconds of exchanges that do not hide, in closed form.
        rest: Seconds of arithmetic and update.
        sent: Bytes that a device sends in a step.
        simulated: Mean seconds of a step with stragglers.
        error: The standard error of this mean.
        alone: Examples per second of the same method on one device with as many examples on it.
        hours: Hours of the training, with stragglers, checkpoints and failures.
        failures: The number of failures.
        interval: Seconds between checkpoints; None without any.
    """

    POSITIVE: ClassVar[Sequence[str]] = (
        "devices", "probe", "data", "examples", "simulated", "alone", "hours", "interval",
    )  # fmt: skip
    NOT_NEGATIVE: ClassVar[Sequence[str]] = ("compute", "exchange", "rest", "sent", "error", "failures")

    method: str
    kept: Kept
    devices: int
    probe: int
    data: int
    examples: float
    compute: float
    exchange: float
    rest: float
    sent: float
    simulated: float
    error: float
    alone: float
    hours: float
    failures: int
    interval: float | None

    @property
    def seconds(self) -> float:
        """Seconds of a step in closed form."""
        return self.compute + self.exchange + self.rest

    @property
    def ideal(self) -> float:
        """The efficiency in closed form: examples per second and device, as a fraction of those on one device."""
        return self.examples / self.seconds / self.devices / self.alone

    def efficiency(self, examples: float) -> float:
        """The same of a training on so many examples, with stragglers, checkpoints and failures."""
        return examples / (3600 * self.hours) / self.devices / self.alone

    @property
    def device_hours(self) -> float:
        """Hours of all devices together."""
        return self.hours * self.devices


@dataclass(frozen=True, kw_only=True)
class Pair:
    """SAMPa on two devices against SAM, for a grid of batches and bandwidths.

    Attributes:
        batches: Examples of a step.
        bandwidths: Bytes per second of the link between the two devices.
        over_data: Time of data-parallel SAM on both devices, divided by SAMPa's; a row for each bandwidth.
        over_one: The same of SAM on one device.
    """

    batches: list[float]
    bandwidths: list[float]
    over_data: list[list[float]]
    over_one: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base of a pass above which SAMPa is faster than data-parallel SAM.

    Attributes:
        link: The link between hosts.
        devices: Numbers of devices.
        bases: Seconds, for each of these numbers; below 0 if SAMPa is always faster.
    """

    link: str
    devices: list[int]
    bases: list[float]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A public figure: its name, bytes per second, and source."""

    POSITIVE: ClassVar[Sequence[str]] = ("bandwidth",)

    title: str
    bandwidth: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A whole study.

    Attributes:
        settings: What was chosen, by name.
        base: Seconds of the base of a gradient.
        examples: Examples of the training.
        points: The methods on the meshes.
        pair: SAMPa on two devices.
        bases: Where SAMPa is faster on more devices.
        marks: Public figures of links between two devices.
        versions: Versions of lowland and simpy.
    """

    POSITIVE: ClassVar[Sequence[str]] = ("examples",)

    settings: dict[str, str]
    base: float
    examples: float
    points: list[Point]
    pair: Pair
    bases: list[Base]
    marks: list[Mark]
    versions: dict[str, str]

    def of(self, method: str, kept: Kept) -> list[Point]:
        """The points of a method, with the number of devices ascending."""
        own = [p for p in self.points if (p.method, p.kept) == (method, kept)]
        return sorted(own, key=lambda p: p.devices)

    @property
    def methods(self) -> list[str]:
        """The methods in the order of the record."""
        return list(dict.fromkeys(p.method for p in self.points))

    def check(self) -> None:
        """Refuse a record that lacks what the page shows.

        Raises:
            TypeError: It does.
        """
        places = [(p.method, p.kept, p.devices) for p in self.points]
        if not places or len(set(places)) < len(places) or not all(p.seconds > 0 for p in self.points):
            raise TypeError("points must each be another one, whose steps take time")
        pair, many = self.pair, (len(self.pair.bandwidths), len(self.pair.batches))
        if min(many) < 2 or any([len(rows), *map(len, rows)] != [many[0], *[many[1]] * many[0]] for rows in
                                (pair.over_data, pair.over_one)):  # fmt: skip
            raise TypeError("pair must have a row for each of its bandwidths, and in it a number for each batch")
        if min([*pair.batches, *pair.bandwidths]) <= 0:
            raise TypeError("pair must have batches and bandwidths above 0")
        if not self.bases or not all(base.devices and len(base.devices) == len(base.bases) for base in self.bases):
            raise TypeError("bases must have a number for each number of devices")
        if not {"lowland", "simpy"} <= set(self.versions):
            raise TypeError("versions must name those of lowland and simpy")

    def text(self) -> str:
        """The record as JSON; equal studies have equal texts."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            ArgumentError: The file cannot be read.
            StateError: It is no record of this version.
        """
        entries = contents(path, COMMAND, VERSION)
        del entries["version"]
        try:
            lists = {"points": Point, "bases": Base, "marks": Mark}
            parts: dict[str, Any] = {n: [kind(**exact(kind, e)) for e in entries[n]] for n, kind in lists.items()}
            parts["pair"] = Pair(**exact(Pair, entries["pair"]))
            made = cls(**exact(cls, entries | parts))
            made.check()
            return made
        except (KeyError, TypeError) as error:
            raise damaged(path, COMMAND, error) from None
