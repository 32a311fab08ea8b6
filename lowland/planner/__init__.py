"""What a method costs: read off its plan, predicted for this machine, and simulated for larger ones."""

from __future__ import annotations

from lowland.planner.planning import Plan, plan

__all__ = ["Plan", "plan"]
