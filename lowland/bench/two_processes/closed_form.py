"""The closed form of :mod:`lowland.planner.frontier` for the steps on two processes, beside which they are measured.

Its line of a gradient goes through two measured steps, which exchange nothing while the other process takes one, too:
plain steps on a batch, and on half of it. So the line contains how much two busy processes slow each other down, and an
optimizer's step for each gradient. The link has the bandwidth that was set, and the messages are those of the
executors. What the closed form does not say is how much of an exchange hides in a backward, so there are two times:
with nothing hidden, and with all that a backward has room for. A backward is taken to be two thirds of a gradient. The
methods' arithmetic, smaller messages and what protocols add are left out.
"""

from __future__ import annotations

from typing import Any

from lowland import SAM
from lowland.bench.two_processes.case import Case
from lowland.executors.mesh.messages import BUCKET
from lowland.planner.asks import read
from lowland.planner.frontier import advantage, critical
from lowland.planner.ideal import predict
from lowland.planner.line import Line, fit
from lowland.planner.links import Link, flat
from lowland.planner.setting import Setting

OVERLAPS = {"nothing": 0.0, "all": 1.0}  # what hides of an exchange, as a fraction of a backward
FORWARD = 1 / 3  # of a gradient: backward computes products with weights and with inputs, forward one of them


def times(case: Case, medians: dict[str, float], *, mbit: float | None = None, delay: float = 0.0) -> dict[str, Any]:
    """Times of a step in milliseconds, by what hides of the exchanges.

    Args:
        case: The model and the batch.
        medians: Measured milliseconds of ``plain-twice`` and ``half-twice``.
        mbit: The bandwidth of the link in Mbit/s; None for one that takes no time.
        delay: The latency of the link in milliseconds.

    Returns:
        ``base_ms``, what a gradient takes beside its examples, and for each of :data:`OVERLAPS` the time of ``dp-sam``
        and of ``sampa``.
    """
    result: dict[str, Any] = {"base_ms": round(_line(case, medians).base * 1e3, 3)}
    for hides, overlap in OVERLAPS.items():
        setting = _setting(case, medians, overlap, mbit, delay)
        data = predict(read(SAM()), setting).total
        ms = {"dp-sam": data, "sampa": data - advantage(setting)}
        result[hides] = {name: round(seconds * 1e3, 3) for name, seconds in ms.items()}
    return result


def level(case: Case, medians: dict[str, float], delay: float = 0.0) -> dict[str, list[float]]:
    """The bandwidths in Mbit/s at which SAMPa on two processes takes as long as SAM on one, by what hides.

    Args:
        case: The model and the batch.
        medians: Measured milliseconds of ``plain-twice``, ``half-twice`` and ``plain``.
        delay: The latency of the link in milliseconds.
    """
    slowed = 2 * (medians["plain-twice"] - medians["plain"]) / 1e3  # SAM's two gradients have no busy neighbor
    return {
        hides: [
            float(f"{bandwidth * 8 / 1e6:.3g}")
            for bandwidth in critical(
                _setting(case, medians, overlap, 1.0, delay), "bandwidth", "one", extra=slowed, link="between"
            )
        ]
        for hides, overlap in OVERLAPS.items()
    }


def _setting(case: Case, medians: dict[str, float], overlap: float, mbit: float | None, delay: float) -> Setting:
    """Data-parallel SAM on two devices."""
    line = _line(case, medians)
    return Setting(
        gradient=line,
        forward=Line(FORWARD * line.base, FORWARD * line.slope),
        size=case.bytes(),
        network=flat(Link(delay / 1e3, float("inf") if mbit is None else mbit * 1e6 / 8)),
        data=2,
        batch=case.batch,
        overlap=overlap,
        bucket=BUCKET,
    )


def _line(case: Case, medians: dict[str, float]) -> Line:
    return fit([case.batch / 2, case.batch], [medians["half-twice"] / 1e3, medians["plain-twice"] / 1e3])
