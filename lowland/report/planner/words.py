"""The sentences and the tables of simulated trainings, which terminal and page share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lowland.report.planner.record import Kept, Point, Scaling
from lowland.report.values import NONE

HEADINGS = (
    "method",
    "devices",
    "mesh",
    "ms",
    "exchange",
    "simulated",
    "failures",
    "efficiency",
    "hours",
    "device-hours",
)
HELP = {
    "mesh": "groups that divide the gradients of a step × devices that divide the batch",
    "ms": "of a step in closed form, without stragglers and failures",
    "exchange": "the share of exchanges in the step, without what hides in a backward",
    "simulated": "ms of the mean step with stragglers",
    "failures": "of any device during the training",
    "efficiency": "examples per second and device with stragglers, checkpoints and failures, as a fraction of those of "
    "the same method on one device with as many examples on it",
    "hours": "of the whole training, with stragglers, checkpoints and failures",
}
TITLES: dict[Kept, str] = {"per device": "One batch for every device", "global": "One batch for all devices"}
SATURATED = 1.25  # if twice the devices are less than this times as fast, devices no longer pay
NOT_COVERED = (
    "Memory: nothing says whether a batch fits on a device, and passes that share a device are not slower.",
    "Topology beyond hosts: all hosts are connected alike, without oversubscribed switches and other traffic.",
    "Small messages: losses, statistics and checks of a step, one exchange of a few numbers for each wave.",
    "No program reaches the rates that documents state; latencies, overlap and times of passes are assumed here.",
    "A pass takes a base and a time for each example, also for few examples, for which real times are steps.",
    "Overlap is a fixed fraction of a backward; an exchange does not slow the backward in which it hides down.",
    "Methods whose arithmetic is not given have none; loading data and evaluation are not in a step.",
    "Stragglers are independent in every step; failures are independent of each other, and all devices wait for each.",
    "Whether a method reaches the same accuracy with another batch: this is about time alone.",
)


def shown(study: Scaling, kept: Kept) -> list[Point]:
    """The points of the table: up to four numbers of devices for each method."""
    counts = sorted({p.devices for p in study.points if p.kept == kept})
    last = len(counts) - 1
    chosen = {counts[round(last * n / 4)] for n in range(1, 5)} if counts else set()
    return [p for name in study.methods for p in study.of(name, kept) if p.devices in chosen]


def cells(point: Point, examples: float) -> list[str]:
    """The row of a point in the order of ``HEADINGS``."""
    return [
        point.method,
        f"{point.devices:,}",
        f"{point.probe}×{point.data:,}",
        f"{1e3 * point.seconds:,.1f}",
        f"{100 * point.exchange / point.seconds:.1f} %" if point.exchange else NONE,
        f"{1e3 * point.simulated:,.1f}",
        f"{point.failures:,}",
        f"{100 * point.efficiency(examples):.0f} %",
        f"{point.hours:,.{0 if point.hours >= 100 else 1}f}",
        f"{point.device_hours:,.0f}",
    ]


def saturation(points: Sequence[Point]) -> Point | None:
    """The first point after which more devices hardly pay: twice as many are less than 1.25 times as fast."""
    for point, following in pairwise(points):
        if following.devices == 2 * point.devices and point.seconds < SATURATED * following.seconds:
            return point
    return None


def verdict(study: Scaling) -> str:
    """The first sentences: two devices, where data parallelism saturates, and what a second gradient group buys."""
    gains = [gain for row in study.pair.over_data for gain in row]
    parts = []
    if min(gains) >= 1:
        parts.append(
            "On two devices SAMPa is faster than data-parallel SAM for all batches and bandwidths drawn, "
            f"{min(gains):.2f} to {max(gains):.2f} times."
        )
    elif max(gains) <= 1:
        parts.append("On two devices SAMPa is slower than data-parallel SAM for all batches and bandwidths drawn.")
    else:
        parts.append(
            f"On two devices SAMPa is from {1 / min(gains):.2f} times slower to {max(gains):.2f} times faster than "
            "data-parallel SAM, depending on batch and bandwidth."
        )
    sam, sampa = (study.of(name, "global") for name in ("sam", "sampa"))
    end = saturation(sam)
    if sam and end is None:
        parts.append("Data-parallel SAM does not saturate on these devices.")
    if end is not None:
        parts.append(
            f"With a batch of {end.examples:,.6g}, data-parallel SAM saturates at {end.devices:,} devices: twice as "
            f"many are less than {SATURATED} times as fast."
        )
        parts += [_bought(end, other) for other in sampa if other.devices == end.devices]
        parts += [_bought(sam[-1], other) for other in sampa[-1:] if other.devices == sam[-1].devices > end.devices]
    return " ".join(parts)


def _bought(sam: Point, sampa: Point) -> str:
    ratio = sam.seconds / sampa.seconds
    faster = f"{ratio:.2f} times faster" if ratio >= 1 else f"{1 / ratio:.2f} times slower"
    return (
        f"On {sam.devices:,} devices a step of SAM takes {1e3 * sam.seconds:,.1f} ms, and of SAMPa on {sampa.probe} × "
        f"{sampa.data:,} {1e3 * sampa.seconds:,.1f} ms, which is {faster}."
    )
