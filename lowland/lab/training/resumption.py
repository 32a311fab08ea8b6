"""Checks of an existing run folder before a run starts or resumes in it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from lowland.core.errors import StateError
from lowland.lab.identity import refuse_other
from lowland.runs.file import History


def restarted(recorded: History, line: dict[str, Any]) -> bool:
    """Whether torchrun restarted this process and the run belongs to the same job; then the run resumes by itself."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and recorded.job == line["job"]


def check_folder(recorded: dict[str, Any], requested: dict[str, Any], folder: Path, *, resume: bool) -> None:
    """Refuse a folder with another run, or with this run if ``resume`` is false.

    Args:
        recorded: The config line in the folder.
        requested: The config line of the requested run.
        folder: The run folder.
        resume: Whether the run may resume.

    Raises:
        StateError: The folder has such a run.
    """
    if not resume:
        raise StateError(
            f"out must be a folder without this run, but {folder} holds one; go on with --resume, "
            "choose another --out, or remove that folder"
        )
    refuse_other(recorded, requested, folder)


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
        + (f", {_OTHER_PARTS}" if name == "mesh" and _batch_parts(old) != _batch_parts(new) else "")
        for name, old, new in changed
    ]


_OTHER_PARTS = (
    "and so may the results of everything that sees one part of a batch at a time, because the parts differ: "
    "BatchNorm, and methods that perturb or choose examples on each rank separately (micro-sam, k-sam, esam, ausam)"
)


def _batch_parts(mesh: str | None) -> int:
    """The number of parts into which a mesh divides a batch."""
    sizes = {name: int(size) for name, _, size in (part.partition("=") for part in (mesh or "").split(",") if part)}
    return math.prod(size for name, size in sizes.items() if name != "probe")
