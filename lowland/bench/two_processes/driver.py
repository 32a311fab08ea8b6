"""Measures the cost of a step on two processes: data-parallel SAM, and SAMPa, which computes two gradients at once.

All variants take turns, step by step:

- ``plain`` and ``sam`` run on one process while the other process rests;
- ``plain-twice`` runs independently on both processes. It is a lower bound for two simultaneous gradients on this
  machine, whose processes share memory and caches. ``half-twice`` does the same with half of the batch each;
- ``dp-plain`` and ``dp-sam`` divide a batch between both processes (DistributedDataParallel);
- ``sampa`` computes a gradient of the full batch on each process, and exchanges the gradients through host memory;
- ``sampa-messages`` exchanges them by gloo, as ``sampa`` does over a network.

The headline is the ratio of a variant to ``plain-twice``: what a method on two processes costs beyond its gradients.

Each process has one thread. Figures are medians, and ratios are medians of ratios within a round, so that a drift of
the machine's speed cancels. The time of a step on two processes is the time of the slower process.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from lowland.bench import overhead
from lowland.bench.two_processes import closed_form
from lowland.bench.two_processes.case import CASES, RANKS, Case
from lowland.bench.two_processes.network import DEVICE, network
from lowland.bench.two_processes.pair import Pair, pair
from lowland.core import checks
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.planner.ranks import memory

WARMUP = 5  # rounds that do not count, after a change of bandwidth, too
FEWEST = 5  # rounds that make a median
BANDWIDTHS = (10000.0, 1000.0, 300.0, 100.0, 30.0)  # Mbit/s; the first hardly limits
AT_ONCE = ("sampa", "sampa-messages", "dp-sam", "dp-plain", "sam")  # next to two plain steps at once
RATIOS = (
    *((name, "plain-twice") for name in AT_ONCE),
    ("sam", "plain"),
    ("plain-twice", "plain"),
    ("dp-plain", "plain"),
    ("dp-sam", "plain"),
    ("sampa", "plain"),
    ("dp-sam", "sam"),
    ("sampa", "sam"),
    ("sampa", "dp-sam"),
    ("sampa-messages", "plain"),
    ("sampa", "sampa-messages"),
)
Tick = Callable[[], None]


def measure(name: str, *, rounds: int = 60, tick: Tick | None = None) -> dict[str, Any]:
    """Step times on one process and on two, through the loopback device.

    Args:
        name: A key of ``CASES``.
        rounds: Rounds that count, >= 5; every variant takes one step a round.
        tick: Called after every round, ``WARMUP + rounds`` times.

    Returns:
        See :func:`summary`, with the ``case``, the bytes of its ``parameters``, and ``closed_form``: see
        :func:`lowland.bench.two_processes.closed_form.times`.
    """
    case = _chosen(name, rounds)
    with pair() as both:
        parameters = _set_up(both, case, apart=False)
        answers = _rounds(both, rounds, tick)
    # The loopback device carries the traffic of both ranks.
    figures = summary(answers, senders=RANKS)
    expected = closed_form.times(case, figures["median_ms"])
    return {"case": name, "parameters": parameters, **figures, "closed_form": expected}


def measure_network(
    name: str,
    *,
    rounds: int = 60,
    bandwidths: Sequence[float] = BANDWIDTHS,
    delay: float = 0.0,
    tick: Tick | None = None,
) -> dict[str, Any]:
    """Step times on two processes with a cable of limited bandwidth between them.

    Args:
        name: A key of ``CASES``.
        rounds: Rounds that count at each bandwidth, >= 5.
        bandwidths: In Mbit/s, each > 0.
        delay: The latency of a packet in milliseconds; a value above 0 requires the kernel's netem.
        tick: Called after every round, :func:`network_rounds` times.

    Returns:
        The ``case``, the bytes of its ``parameters``, the ``delay``, for each of ``bandwidths`` a :func:`summary` with
        its ``mbit`` and ``closed_form``, and ``faster``: see :func:`crossings`; and ``level``, where SAMPa is as fast
        as SAM on one process by :func:`lowland.bench.two_processes.closed_form.level`.
    """
    case, ordered = _chosen(name, rounds), checked(bandwidths)
    with network() as joined, pair(joined.prefixes, DEVICE) as both:
        parameters = _set_up(both, case, apart=True)
        summaries = []
        for mbit in ordered:
            joined.limit(mbit, delay)
            figures = summary(_rounds(both, rounds, tick), senders=1)
            expected = closed_form.times(case, figures["median_ms"], mbit=mbit, delay=delay)
            summaries.append({"mbit": mbit, **figures, "closed_form": expected})
    return {
        "case": name,
        "parameters": parameters,
        "delay": delay,
        "bandwidths": summaries,
        "faster": {f"sampa than {other}": crossings(summaries, "sampa", other) for other in ("dp-sam", "sam")},
        "level": closed_form.level(case, summaries[0]["median_ms"], delay),
    }


def network_rounds(rounds: int, bandwidths: Sequence[float]) -> int:
    """How often :func:`measure_network` calls ``tick``."""
    return len(bandwidths) * (WARMUP + rounds)


def checked(bandwidths: Sequence[float]) -> list[float]:
    """Sort bandwidths from the largest to the smallest.

    Raises:
        ArgumentError: There are none, one is listed twice, or one is below 0.1.
    """
    for mbit in bandwidths:
        checks.at_least("bandwidths", mbit, 0.1, "give them in Mbit/s")
    if not bandwidths or len(set(bandwidths)) < len(bandwidths):
        raise ArgumentError(f"bandwidths must be one or more, all different, but are {tuple(bandwidths)}; in Mbit/s")
    return sorted(bandwidths, reverse=True)


def machine() -> dict[str, Any]:
    """The machine that the figures were measured on, with its number of cores: each process needs one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {**overhead.machine(), "cores": cores, "GLIBC_TUNABLES": memory()["GLIBC_TUNABLES"]}


def _chosen(name: str, rounds: int) -> Case:
    if name not in CASES:
        raise UnknownNameError("case", name, CASES)
    checks.integer("rounds", rounds, FEWEST, "60 give a steady median")
    return CASES[name]


def _set_up(both: Pair, case: Case, *, apart: bool) -> int:
    both.order(case=asdict(case), apart=apart)
    return int(both.answers()[0]["parameters"])


def _rounds(both: Pair, rounds: int, tick: Tick | None) -> list[list[dict[str, Any]]]:
    """The answers of both ranks for each round that counts."""
    both.order(rounds=WARMUP + rounds)
    answers = []
    for _ in range(WARMUP + rounds):
        answers.append(both.answers())
        if tick is not None:
            tick()
    return answers[WARMUP:]


def summary(answers: Sequence[Sequence[dict[str, Any]]], *, senders: int) -> dict[str, Any]:
    """Medians over rounds.

    Args:
        answers: The answers of all ranks for each round; see :func:`lowland.bench.two_processes.worker.take_round`.
        senders: The number of ranks that send through the measured network device.

    Returns:
        ``rounds``; by variant ``median_ms``, the ``bytes`` of gradients that a rank sends in a step, and
        ``wire_bytes``, the bytes that the network device counts for a rank in a step, including all protocols (None
        without a count); ``ratios``, those to ``plain-twice`` first; and by variant, for those that exchange
        anything, ``exposed_ms``: the time that a rank waits in a step for exchanges which backward does not hide, with
        ``exposed_share``, its fraction of the step. For every exchange it is the time of the rank that waits less,
        whose backward ends last: the time that the other rank waits for this rank is not included.
    """
    first = answers[0][0]
    names = list(first["seconds"])
    seconds = {name: [max(rank["seconds"].get(name, 0.0) for rank in ranks) for ranks in answers] for name in names}
    waited = {n: [_unhidden([rank["waited"][n] for rank in ranks]) for ranks in answers] for n in first["waited"]}
    wires = {name: [ranks[0]["wire"][name] for ranks in answers] for name in names}
    return {
        "rounds": len(answers),
        "median_ms": {name: round(statistics.median(times) * 1e3, 3) for name, times in seconds.items()},
        "ratios": {f"{a} / {b}": _ratio(seconds[a], seconds[b]) for a, b in RATIOS if {a, b} <= seconds.keys()},
        "bytes": {name: round(statistics.median(ranks[0]["bytes"][name] for ranks in answers)) for name in names},
        "wire_bytes": {
            name: None if None in counts else round(statistics.median(counts) / senders)
            for name, counts in wires.items()
        },
        "exposed_ms": {name: round(statistics.median(times) * 1e3, 3) for name, times in waited.items()},
        "exposed_share": {name: _ratio(times, seconds[name]) for name, times in waited.items()},
    }


def _unhidden(waits: Sequence[Sequence[float]]) -> float:
    """The time of all exchanges of a step, for each the least of all ranks; a sequence of waits per rank."""
    return sum(map(min, zip(*waits, strict=True)), 0.0)


def _ratio(over: Sequence[float], under: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 4)


def crossings(summaries: Sequence[dict[str, Any]], one: str, other: str) -> dict[str, list[float]]:
    """The bandwidths at which one variant is faster than another, and at which both are equally fast.

    Args:
        summaries: Summaries with their ``mbit``, from the largest to the smallest bandwidth.
        one: The name of a variant.
        other: The name of another variant.

    Returns:
        ``at``: the measured bandwidths at which the first variant is faster; ``turns``: the bandwidths at which both
        are equally fast, by linear interpolation of the logarithm of their ratio over that of the bandwidth.
    """
    ratios = [(f["mbit"], f["ratios"][f"{one} / {other}"]) for f in summaries]
    turns = []
    for (wide, a), (narrow, b) in pairwise(ratios):
        if (a < 1) != (b < 1):
            fraction = math.log(a) / (math.log(a) - math.log(b))
            turns.append(float(f"{wide * (narrow / wide) ** fraction:.3g}"))
    return {"at": [mbit for mbit, ratio in ratios if ratio < 1], "turns": turns}
