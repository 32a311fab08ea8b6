"""What a run folder may hold when a run begins there, and what of it is this rank's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowland.distributed import World
from lowland.errors import StateError
from lowland.lab.config import refuse_other
from lowland.lab.records import History


def restarted() -> bool:
    """Whether torchrun has started this process again after a failure: then a run goes on by itself."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def check_held(recorded: dict[str, Any], asked: dict[str, Any], folder: Path, *, resume: bool) -> None:
    """Refuse a folder with a run that is not to be resumed, or with another run.

    Raises:
        StateError: It holds one.
    """
    if not resume:
        raise StateError(
            f"out must be a folder without this run, but {folder} holds one; go on with --resume, "
            "choose another --out, or remove that folder"
        )
    refuse_other(recorded, asked, folder)


def changed_versions(held: History, line: dict[str, Any]) -> list[str]:
    """Warnings about what may change the bits of a resumed run without being part of its configuration."""
    begun = held.config or line
    parts = (
        ("versions", "torch"),
        ("versions", "lowland"),
        ("machine", "threads"),
        ("machine", "name"),
        ("machine", "ranks"),
        ("machine", "mesh"),
    )
    return [
        f"begun with {name} {begun[part].get(name)} and resumed with {line[part].get(name)}: the bits may differ from "
        "an uninterrupted run"
        for part, name in parts
        if begun[part].get(name) != line[part].get(name)
    ]


def mean_loss(ranks: World, losses: float, examples: int) -> float:
    """The mean over all examples that any rank has seen, from this rank's sum and number; all ranks call it."""
    sums, counts = zip(*ranks.gather((losses, examples)), strict=True)
    return float(sum(sums) / max(sum(counts), 1))


def seen_here(seen: Sequence[tuple[float, int]], ranks: World) -> tuple[float, int]:
    """Sum of losses and number of examples for this rank, from those of the ranks that saved them."""
    if len(seen) == ranks.size:
        return seen[ranks.rank]
    losses, examples = (sum(each) for each in zip(*seen, strict=True))
    return losses / ranks.size, round(examples / ranks.size)
