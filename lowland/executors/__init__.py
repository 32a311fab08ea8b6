"""Executors, which answer probes: one after the other, in one vmapped pass, or on several ranks."""

from __future__ import annotations

from lowland.executors.auto import Auto
from lowland.executors.base import Executor, Work
from lowland.executors.batched import Batched
from lowland.executors.counted import Cost, Counted
from lowland.executors.local import Local, Pass
from lowland.executors.mesh.mesh import Mesh

__all__ = ["Auto", "Batched", "Cost", "Counted", "Executor", "Local", "Mesh", "Pass", "Work"]
