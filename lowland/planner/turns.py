"""Steps that are timed in turns, so that changes of the machine's speed affect all of them alike.

All ranks run the same turns; a barrier comes before every step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lowland.core.transfer import has_streams
from lowland.parallel import broadcast

WARMUP = 5  # rounds that are not counted: allocators, caches and optimizer states fill
ROUNDS = 20  # rounds that are counted
FEWEST, MOST = 5, 60  # rounds that are counted where the time is limited
Tick = Callable[[float], None]  # gets the fraction that is done


@dataclass(frozen=True)
class Turn:
    """One step that is timed once in every round.

    Args:
        step: Takes the step.
        prepare: Called before the step, outside of its time.
        alone: Only the first rank takes the step.
    """

    step: Callable[[], None]
    prepare: Callable[[], None] = lambda: None
    alone: bool = False


def take(
    turns: Mapping[Any, Turn],
    device: torch.device,
    *,
    rounds: int = ROUNDS,
    warmup: int = WARMUP,
    limit: float | None = None,
    tick: Tick | None = None,
) -> dict[Any, list[float]]:
    """Take rounds of all turns, each round in an order of its own, which is the same on all ranks.

    What a step takes depends on the step before it, which leaves caches and other ranks in a state of its own. So no
    two turns may follow each other in all rounds.

    Args:
        turns: The turns by name, the same on all ranks.
        device: The device whose work a step's time includes.
        rounds: The rounds that are counted, >= 1.
        warmup: Rounds before them, which are not counted.
        limit: About how many seconds all rounds may take. The warm-up then decides how many are counted: at least
            ``FEWEST``, at most ``MOST``.
        tick: Called after every round with the fraction that is done.

    Returns:
        Seconds of every counted step on this rank; none for a turn that only the first rank takes, on another rank.
    """
    names, begun = list(turns), time.perf_counter()
    seconds: dict[Any, list[float]] = {name: [] for name in turns}
    first = not dist.is_initialized() or dist.get_rank() == 0
    number = 0
    while number < warmup + rounds:
        for name in random.Random(number).sample(names, len(names)):
            lap = _lap(turns[name], device, first=first)
            if number >= warmup and lap is not None:
                seconds[name].append(lap)
        number += 1
        if number == warmup and limit is not None:
            passed = time.perf_counter() - begun
            rounds = broadcast(round(min(max((limit - passed) * warmup / passed, FEWEST), MOST)))
        if tick is not None:
            tick(number / (warmup + rounds) if number >= warmup or limit is None else 0.0)
    return seconds


def _lap(turn: Turn, device: torch.device, *, first: bool) -> float | None:
    """The seconds of one step; None on a rank that does not take it."""
    if turn.alone and not first:
        _meet()
        return None
    turn.prepare()
    _settle(device)
    if not turn.alone:
        _meet()
    begun = time.perf_counter()
    turn.step()
    _settle(device)
    lap = time.perf_counter() - begun
    if turn.alone:
        _meet()
    return lap


def _settle(device: torch.device) -> None:
    """Wait for the device."""
    if has_streams(device):
        getattr(torch, device.type).synchronize(device)


def _meet() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
