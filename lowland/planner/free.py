"""How much memory is free on a device, also in a container, which may have less than its machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")  # of the files that Linux tells it in


def room(device: torch.device) -> int | None:
    """The bytes of memory that are free on a device, for all of its ranks together; None where it is not known.

    On Linux a control group, such as a container's, may limit its processes to less than what the machine has free.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = (ROOT / "proc/meminfo").read_text().splitlines()
        machine = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        return None
    return min([machine, *_groups()])


def _groups() -> Iterator[int]:
    """The free bytes of every control group of this process that has a limit."""
    try:
        entries = [line.split(":", 2) for line in (ROOT / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in entries:
        if not controllers:  # version 2
            base, names = "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be that of the host, and the container's own group is at the top.
        inner = Path(path.lstrip("/"))
        for folder in {ROOT / base, *(ROOT / base / each for each in (inner, *inner.parents))}:
            free = _free(folder, *names)
            if free is not None:
                yield free


def _free(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """The limit of a control group, without what is used and cannot be given back; None without a limit."""
    try:
        most, taken = int((folder / limit).read_text()), int((folder / used).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return max(most - taken + int(counts.get(cache, 0)), 0)
