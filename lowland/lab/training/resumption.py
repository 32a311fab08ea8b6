"""Checks of an existing run folder before a run starts or resumes in it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from lowland.core.errors import StateError
from lowland.lab.identity import refuse_other
from lowland.runs.file import History


def restarted(held: History, line: dict[str, Any]) -> bool:
    """Whether torchrun restarted this process and the run belongs to the same job; then the run resumes by itself."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and held.job == line["job"]


def check_held(recorded: dict[str, Any], asked: dict[str, Any], folder: Path, *, resume: bool) -> None:
    """Refuse a folder that holds another run, or that holds this run without ``resume``.

    Raises:
        StateError: The folder holds such a run.
    """
    if not resume:
        raise StateError(
            f"out must be a folder without this run, but {folder} holds one; go on with --resume, "
            "choose another --out, or remove that folder"
        )
    refuse_other(recorded, asked, folder)


def changed_versions(history: History, line: dict[str, Any]) -> list[str]:
    """Warnings about changes outside the configuration that may change the bits of a resumed run."""
    started = history.config or line
    parts = (
        ("versions", "torch"),
        ("versions", "lowland"),
        ("machine", "threads"),
        ("machine", "name"),
        ("machine", "ranks"),
        ("machine", "mesh"),
    )
    changed = [
        (n, started[part].get(n), line[part].get(n)) for part, n in parts if started[part].get(n) != line[part].get(n)
    ]
    return [
        f"begun with {name} {old} and resumed with {new}: the bits may differ from an uninterrupted run"
        + (f", {_SHARES}" if name == "mesh" and _shares(old) != _shares(new) else "")
        for name, old, new in changed
    ]


_SHARES = (
    "and what sees one share of a batch at a time, now another one: BatchNorm, and the methods that perturb or choose "
    "examples on each rank for itself (micro-sam, k-sam, esam, ausam)"
)


def _shares(mesh: str | None) -> int:
    sizes = {name: int(size) for name, _, size in (part.partition("=") for part in (mesh or "").split(",") if part)}
    return math.prod(size for name, size in sizes.items() if name != "probe")
