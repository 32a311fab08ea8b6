"""Free memory, from files that are made up as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowland.planner import free

CPU = torch.device("cpu")
MEMINFO = "MemTotal:       4000 kB\nMemFree:         100 kB\nMemAvailable:   2000 kB\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(free, "ROOT", tmp_path)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    return tmp_path


def group(folder: Path, version: int, limit: object, used: int, cache: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {2: ("memory.max", "memory.current", "inactive_file")}
    most, taken, file = names.get(version, ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    (folder / most).write_text(f"{limit}\n")
    (folder / taken).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{file} {cache}\n")


def test_a_machine_without_control_groups(root: Path) -> None:
    assert free.room(CPU) == 2_048_000
    (root / "proc" / "self" / "cgroup").write_text("0::/user.slice\n")  # which has no files here
    assert free.room(CPU) == 2_048_000


def test_other_systems_do_not_say(root: Path) -> None:
    (root / "proc" / "meminfo").write_text("MemTotal: 4000 kB\n")  # as old kernels do
    assert free.room(CPU) is None
    (root / "proc" / "meminfo").unlink()
    assert free.room(CPU) is None


@pytest.mark.parametrize("shown", ["/", "/docker/abc", "/../host/abc"])  # its own root, or the host's path
def test_a_container_has_its_limit(root: Path, shown: str) -> None:
    (root / "proc" / "self" / "cgroup").write_text(f"0::{shown}\n")
    group(root / "sys/fs/cgroup", 2, 1_000_000, 400_000, cache=100_000)
    assert free.room(CPU) == 700_000  # files in the cache can be given back
    group(root / "sys/fs/cgroup", 2, "max", 400_000)
    assert free.room(CPU) == 2_048_000
    group(root / "sys/fs/cgroup", 2, 1_000, 4_000)
    assert free.room(CPU) == 0


def test_the_smallest_limit_of_all_groups_above_counts(root: Path) -> None:
    (root / "proc" / "self" / "cgroup").write_text("0::/job/task\n")
    group(root / "sys/fs/cgroup/job", 2, 500_000, 200_000)
    group(root / "sys/fs/cgroup/job/task", 2, "max", 100_000)
    assert free.room(CPU) == 300_000
    group(root / "sys/fs/cgroup/job/task", 2, 350_000, 100_000)
    assert free.room(CPU) == 250_000


def test_version_1(root: Path) -> None:
    (root / "proc" / "self" / "cgroup").write_text("9:cpu:/job\n4:hugetlb,memory:/job\n0::/\n")
    group(root / "sys/fs/cgroup/memory/job", 1, 800_000, 300_000, cache=50_000)
    assert free.room(CPU) == 550_000
    group(root / "sys/fs/cgroup/memory/job", 1, 9_223_372_036_854_771_712, 300_000)  # no limit
    assert free.room(CPU) == 2_048_000


def test_this_machine() -> None:
    found = free.room(CPU)
    assert found is None or found > 0
